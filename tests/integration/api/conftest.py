"""The real app on a real database, a clock that stands still, and a job that talks to it."""

import os
import shutil
import threading
import time
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient

from stabilizer.collector.api.app import create_app
from stabilizer.collector.services.change_feed import Audience
from stabilizer.collector.services.container import build_services
from stabilizer.protocol.batches import BatchHeader
from stabilizer.protocol.frames import CONTENT_TYPE, FrameBlock, encode_batch
from stabilizer.protocol.message import PROTOCOL_VERSION
from stabilizer.protocol.series import Catalog
from stabilizer.settings import CollectorSettings
from stabilizer.web.server import Server, listen

LOOPBACK = "http://127.0.0.1:8000"
REGISTRATION = {"protocol_version": PROTOCOL_VERSION, "name": "real", "key": "1"}
NO_SWEEPS_SECONDS = 60.0  # one at the start, and then none within a test


class ManualClock:
    """Stands still until told to go on."""

    def __init__(self):
        self.at = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def now(self):
        return self.at

    def monotonic(self):
        return self.at.timestamp()

    def advance(self, seconds):
        self.at += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """A database file with all tables and nothing in them."""
    file = tmp_path_factory.mktemp("migrated") / "empty.db"
    build_services(
        CollectorSettings(database_url=f"sqlite:///{file}", tokens=()), ManualClock()
    ).close()
    return file


@pytest.fixture
def settings(tmp_path, migrated):
    file = tmp_path / "collector.db"
    shutil.copyfile(migrated, file)
    return CollectorSettings(
        database_url=f"sqlite:///{file}",
        host="127.0.0.1",
        tokens=(),
        sweep_seconds=NO_SWEEPS_SECONDS,
        max_body_bytes=2**20,
    )


@pytest.fixture
def app(settings, clock):
    return create_app(settings, clock)


@pytest.fixture
def client(app):
    with TestClient(app, base_url=LOOPBACK, raise_server_exceptions=False) as client:
        yield client


class Job:
    """Requests of a training job, with good values by default."""

    def __init__(self, client, series=("loss", "grad_norm")):
        self.client = client
        self.catalog = Catalog.of(series)
        self.run_id = ""
        self.attempt = 1
        self.sequence = 0

    def registration(self, **changes):
        message = {
            "protocol_version": PROTOCOL_VERSION,
            "name": "idefics",
            "key": "job-1",
            "mode": "propose",
            "catalogs": [self.catalog.model_dump(mode="json")],
        }
        return {**message, **changes}

    def register(self, **changes):
        answer = self.client.post("/api/v1/runs", json=self.registration(**changes))
        if answer.status_code == 201:
            self.run_id = answer.json()["run_id"]
            self.attempt = answer.json()["attempt"]
        return answer

    def body(self, steps, values=None, **header):
        """Frames at steps; `values` has the shape [steps, series]."""
        steps = np.asarray(steps, np.int64)
        if values is None:
            values = np.ones((len(steps), len(self.catalog)))
        block = FrameBlock(
            self.catalog.id, steps, np.full(len(steps), 1.7e9), np.asarray(values, np.float32)
        )
        head = {"attempt": self.attempt, "sequence": self.sequence, **header}
        return encode_batch(BatchHeader(**head), [block])

    def send(self, steps, values=None, **header):
        answer = self.post(self.body(steps, values, **header))
        if answer.status_code == 200:
            self.sequence += 1
        return answer

    def post(self, body, kind=CONTENT_TYPE):
        return self.client.post(f"{self.path}/frames", content=body, headers={"content-type": kind})

    def send_json(self, **batch):
        message = {"attempt": self.attempt, "sequence": self.sequence, **batch}
        return self.client.post(f"{self.path}/frames", json=message)

    def command(self, parameters, **changes):
        message = {"parameters": parameters, "reason": "by hand", **changes}
        return self.client.post(f"{self.path}/commands", json=message)

    @property
    def path(self):
        return f"/api/v1/runs/{self.run_id}"


@pytest.fixture
def make_job():
    """Make jobs, each for a client."""
    return Job


@pytest.fixture
def job(client):
    """A job that has registered."""
    job = Job(client)
    assert job.register().status_code == 201
    return job


@pytest.fixture
def refused():
    """Check a refusal: status, code, and the names of the fields."""

    def check(answer, status, code, *fields):
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        found = (answer.status_code, problem["code"], {e["field"] for e in problem["errors"]})
        expected_fields = set(fields) if fields else found[2]
        assert found == (status, code, expected_fields), answer.text
        assert problem["status"] == status
        return problem

    return check


class RealServer:
    """An app behind a loopback port, in a thread of its own."""

    def __init__(self, app):
        self.app = app
        self.ready = threading.Event()
        self.listener = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        config = uvicorn.Config(
            app, lifespan="on", ws="none", log_config=None, timeout_graceful_shutdown=5
        )
        self.server = Server(config, self.ready.set, app.state.services.feed.close)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))

    def __enter__(self):
        self.thread.start()
        assert self.ready.wait(20)
        self.client = httpx.Client(base_url=self.url, timeout=20, trust_env=False)
        return self

    def stop(self):
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()

    def __exit__(self, *_):
        self.client.close()
        self.stop()
        self.listener.close()

    def run(self):
        return self.client.post("/api/v1/runs", json=REGISTRATION).json()["run_id"]

    def wait_for_polls(self, number):
        self._wait_for(Audience.JOB, number)

    def wait_for_streams(self, number):
        self._wait_for(Audience.PAGE, number)

    @property
    def feed(self):
        return self.app.state.services.feed

    def _wait_for(self, audience, number):
        deadline = time.monotonic() + 20
        while self.feed.num_listeners(audience) != number:
            assert time.monotonic() < deadline
            os.sched_yield()


@pytest.fixture
def server(app):
    with RealServer(app) as server:
        yield server
