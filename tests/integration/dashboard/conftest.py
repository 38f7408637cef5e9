"""A real collector behind a real port, jobs that report to it, and the dashboard's client."""

import asyncio
import itertools
import shutil
import threading
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import uvicorn

from dashboard.client import Collector, LiveHub
from dashboard.visitor import Visitor
from stabilizer.collector.api.app import create_app
from stabilizer.protocol.message import PROTOCOL_VERSION
from stabilizer.settings import CollectorSettings
from stabilizer.web.server import Server, listen

WAIT_SECONDS = 20
NUMBERS = itertools.count(1)
POLICY = """\
rules:
  - name: loss_not_finite
    doc: The loss is NaN or Inf.
    select: {metric: loss}
    detect: {nonfinite: {}}
    for: 1
    severity: divergence
policy:
  mode: propose
  ladder:
    - {rollback: {margin: 0, skip: 5}, reduce_lr: {factor: 0.5, steps: 100}}
    - pause
  act_on: {any: [severity:divergence]}
  healthy_after: 5
"""
SERIES = (
    "loss",
    "grad_norm",
    "lr_scale",
    'activation_rms{kind="o_proj",layer="0",module="a.o",tower="language"}',
    'activation_rms{kind="o_proj",layer="1",module="b.o",tower="language"}',
)


class ManualClock:
    """A clock that is advanced by hand."""

    def __init__(self):
        self.at = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def now(self):
        return self.at

    def monotonic(self):
        return self.at.timestamp()

    def advance(self, seconds):
        self.at += timedelta(seconds=seconds)


class RealCollector:
    """Can be stopped and started again: at the same port, on the same database."""

    def __init__(self, settings, clock):
        self.settings, self.clock = settings, clock
        self.listener = None
        self.port = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        self.listener = listen("127.0.0.1", self.port)
        self.port = self.listener.getsockname()[1]
        app = create_app(self.settings, self.clock)
        config = uvicorn.Config(
            app, lifespan="on", ws="none", log_config=None, timeout_graceful_shutdown=5
        )
        ready = threading.Event()
        self.server = Server(config, ready.set, app.state.services.feed.close)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self.thread.start()
        assert ready.wait(WAIT_SECONDS)

    def stop(self):
        if self.listener is None:
            return
        self.server.should_exit = True
        self.thread.join(WAIT_SECONDS)
        assert not self.thread.is_alive()
        self.listener.close()
        self.listener = None


@pytest.fixture(scope="module")
def start_collector(tmp_path_factory, migrated_sqlite):
    """Start collectors, each on a database of its own."""
    started = []

    def start(**changes):
        file = tmp_path_factory.mktemp("collector") / "collector.db"
        shutil.copyfile(migrated_sqlite, file)
        given = {"database_url": f"sqlite:///{file}", "tokens": (), "sweep_seconds": 60.0}
        collector = RealCollector(CollectorSettings(**given | changes), ManualClock())
        started.append(collector)
        collector.start()
        return collector

    yield start
    for collector in started:
        collector.stop()


@pytest.fixture(scope="module")
def collector(start_collector):
    """One that stays as it is: who stops or disarms it starts another."""
    return start_collector()


class Job:
    """A training job that only reports, in JSON."""

    def __init__(self, collector, token=None, **registration):
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self.http = httpx.Client(
            base_url=f"{collector.url}/api/v1", headers=headers, timeout=20, trust_env=False
        )
        message = {
            "protocol_version": PROTOCOL_VERSION,
            "name": "idefics",
            "key": f"job-{next(NUMBERS)}",
            "global_batch": 64,
            "heartbeat_seconds": 3600,
            "policy": POLICY,
        }
        self.registration = {**message, **registration}
        registered = self.post("/runs", self.registration)
        self.run_id, self.attempt = registered["run_id"], registered["attempt"]
        self.sequence = 0

    def post(self, path, message):
        answer = self.http.post(path, json=message)
        assert answer.is_success, answer.text
        return answer.json()

    def report(self, steps=(), loss=2.0, **more):
        values = dict(zip(SERIES, (loss, 1.0, 1.0, 3.0, 4.0), strict=True))
        batch = {
            "attempt": self.attempt,
            "sequence": self.sequence,
            "frames": [{"step": step, "values": values} for step in steps],
            **more,
        }
        answer = self.post(f"/runs/{self.run_id}/frames", batch)
        self.sequence += 1
        return answer

    def snapshot(self, step):
        return {"id": f"s{step}", "attempt": 1, "step": step, "finite": True, "samples": 64 * step}

    def break_down(self):
        """Ten good steps with a snapshot that becomes healthy, then NaN: a rollback is proposed."""
        self.report(range(1, 5), snapshots=[self.snapshot(4)])
        self.report(range(5, 11), snapshots=[self.snapshot(4)])
        self.report([11], "NaN", snapshots=[self.snapshot(4)])
        (command,) = self.http.get(f"/runs/{self.run_id}/commands").json()
        assert command["state"] == "proposed"
        return command

    def carry_out(self, command, lr_scale=0.5):
        """Apply a rollback and report it."""
        target = command["parameters"]["target"]
        result = {
            "command_id": command["id"],
            "state": "applied",
            "applied_step": 11,
            "read_back": {
                "attempt": self.attempt + 1,
                "step": target["step"],
                "lr": {"all": 1e-3 * lr_scale},
                "lr_scale": lr_scale,
                "samples": 64 * target["step"] + 320,
                "skipped_samples": 320,
            },
        }
        parent, self.attempt, self.sequence = self.attempt, self.attempt + 1, 0
        start = {
            "from_step": target["step"],
            "parent": parent,
            "reason": "rollback",
            "command_id": command["id"],
            "skipped_samples": 320,
        }
        marker = {"kind": "rollback", "step": target["step"], "text": "back to step 4"}
        self.report(attempt_start=start, markers=[marker])
        self.post(f"/runs/{self.run_id}/commands/{command['id']}/result", result)

    def end(self):
        self.post(
            f"/runs/{self.run_id}/heartbeat",
            {"attempt": self.attempt, "step": 11, "state": "finished"},
        )

    def delete(self):
        answer = self.http.delete(f"/runs/{self.run_id}", params={"reason": "no longer needed"})
        assert answer.status_code == 204, answer.text


@pytest.fixture
def make_job():
    """Start jobs, each at a collector."""
    jobs = []

    def make(collector, **given):
        jobs.append(Job(collector, **given))
        return jobs[-1]

    yield make
    for job in jobs:
        job.http.close()


@pytest.fixture
def job(collector, make_job):
    return make_job(collector)


@pytest.fixture
def ask():
    """Ask a collector in the name of ada: `await act(client)`."""

    def run(collector, act, token=None):
        async def scenario():
            connections = Collector(collector.url)
            try:
                return await act(connections.for_visitor(Visitor(name="ada", token=token)))
            finally:
                await connections.close()

        return asyncio.run(scenario())

    return run


class Ear:
    """Listens to a collector's updates."""

    def __init__(self, hub, listener):
        self.hub, self.listener = hub, listener

    async def until(self, is_it, run_id=None):
        """Wait for updates that satisfy the condition; return them."""
        updates = self.listener.updates(run_id)
        async with asyncio.timeout(WAIT_SECONDS):
            while not is_it(updates):
                updates = await self.listener.wait(run_id, updates, WAIT_SECONDS)
        return updates


@pytest.fixture
def listen_to(clock):
    """Listen to a collector: `await act(ear)`. Tries again without waiting when it is away."""

    def run(collector, act, token=None):
        async def scenario():
            connections = Collector(collector.url)
            hub = LiveHub(connections, clock, lambda _: asyncio.sleep(0))
            try:
                async with hub.listening(Visitor(name="ada", token=token)) as listener:
                    return await act(Ear(hub, listener))
            finally:
                await hub.close()
                await connections.close()

        return asyncio.run(scenario())

    return run
