"""A job of a released version continues under today's agent: its checkpoint and its spool."""

import re
import threading
import time

import httpx
import pytest

from tests.compat.conftest import SECONDS
from tests.forked import start_module

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def fit(recording, job_folder, tmp_path):
    def fit(name, url, steps, *more):
        out = job_folder / name
        log = tmp_path / "trainer.log"
        arguments = ["--config", str(job_folder / "watched" / "config.yaml"), "--collector", url]
        arguments += ["--data", str(job_folder / "corpus"), "--out", str(out), "--run", name]
        arguments += [
            "--policy",
            str(recording.folder / "rules.yaml"),
            "--steps",
            str(steps),
            *more,
        ]
        environment = {
            "STABILIZER_SPOOL_DIRECTORY": str(job_folder / "spool"),
            "OMP_NUM_THREADS": "1",
        }
        job = start_module("trainer", ["fit", *arguments], log, environment)
        assert job.wait(SECONDS) == 0, log.read_text()[-4000:]
        return job

    return fit


class Collector:
    def __init__(self, url):
        self.url = url

    def get(self, path, **query):
        answer = httpx.get(f"{self.url}/api/v1{path}", params=query, timeout=30, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def run(self, name):
        (run,) = [run for run in self.get("/runs")["runs"] if run["name"] == name]
        return self.get(f"/runs/{run['id']}")

    def wait_until_lost(self, run):
        deadline, pause = time.monotonic() + SECONDS, threading.Event()
        while self.get(f"/runs/{run['id']}")["state"] != "lost":
            assert time.monotonic() < deadline
            pause.wait(0.1)

    def samples(self, run, series, attempt):
        found = self.get(f"/runs/{run['id']}/series/data", series=series)
        return {
            step: value
            for data in found
            if data["attempt"] == attempt
            for step, value in zip(data["steps"], data["values"], strict=True)
        }


def test_a_checkpoint_is_resumed_with_the_cuts_of_its_job(serve, sqlite_database, fit, job_folder):
    (checkpoint,) = job_folder.glob("watched/stabilizer/step=*.ckpt")
    step = int(re.match(r"step=(\d+)", checkpoint.name)[1])
    with serve(sqlite_database) as url:
        collector = Collector(url)
        before = collector.run("watched")
        fit("watched", url, step + 6, "--resume", str(checkpoint))
        after = collector.run("watched")
        assert after["id"] == before["id"]
        assert after["state"] == "finished"
        assert after["attempt"] == before["attempt"] + 1
        assert after["attempts"][-1]["from_step"] == step
        scales = collector.samples(after, "lr_scale", after["attempt"])
        assert scales == dict.fromkeys(range(step + 1, step + 7), 0.5)


def test_the_spool_of_a_killed_job_is_delivered(serve, sqlite_database, fit):
    with serve(sqlite_database, lost_after="1") as url:
        collector = Collector(url)
        before = collector.run("killed")
        collector.wait_until_lost(before)  # until then it counts as live, and its name is taken
        known = collector.samples(before, "loss", 1)
        fit("killed", url, 6, "--set", "monitor.snapshot_every=10")
        runs = [run for run in collector.get("/runs")["runs"] if run["name"] == "killed"]
        assert [run["id"] for run in runs] == [before["id"]]
        loss = collector.samples(before, "loss", 1)
        assert loss.items() >= known.items()
        assert len(loss) > len(known)
        assert sorted(loss) == list(range(1, len(loss) + 1))
