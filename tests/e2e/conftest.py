"""Whole processes: a collector and training jobs, started as a user would start them."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from stabilizer.protocol.commands import Command
from stabilizer.protocol.runs import Run
from tests.forked import ForkedProcesses
from trainer.data.making import make_corpus
from trainer.demo.processes import Process, Processes
from trainer.demo.story import policy_file
from trainer.demo.watch import DemoClient

SECONDS = 180.0


def wait_until(predicate, what, processes=()):
    """Ask again until the answer is true; a process that died ends the wait with its log."""
    deadline = time.monotonic() + SECONDS
    pause = threading.Event()
    while not (answer := predicate()):
        for process in processes:
            if not process.is_running and process.popen.returncode != 0:
                raise process.failure()
        assert time.monotonic() < deadline, f"waited {SECONDS} s for: {what}"
        pause.wait(0.1)
    return answer


@dataclass
class Collector:
    """A running `stabilizer serve`, and how to speak to it."""

    processes: Processes
    folder: Path
    process: Process
    url: str

    @property
    def http(self):
        return httpx.Client(base_url=f"{self.url}/api/v1", timeout=30, trust_env=False)

    def run(self, name) -> Run | None:
        with DemoClient(self.url) as client:
            return client.run_named(name)

    def order(self, run_id, parameters, reason="tried by hand") -> httpx.Response:
        body = {"parameters": parameters, "reason": reason}
        with self.http as http:
            return http.post(f"/runs/{run_id}/commands", json=body)

    def command(self, command_id) -> Command:
        with self.http as http:
            return Command.model_validate_json(http.get(f"/commands/{command_id}").content)

    def settled(self, command_id, processes=()) -> Command:
        return wait_until(
            lambda: c if (c := self.command(command_id)).is_settled else None,
            f"command {command_id} to settle",
            processes,
        )

    def stop(self):
        self.process.popen.terminate()
        assert self.process.popen.wait(20) == 0

    def start_again(self):
        self.process, self.url = serve(self.processes, self.folder, port=self.url.split(":")[-1])


def serve(processes, folder, port="0"):
    ready = folder / "url"
    ready.unlink(missing_ok=True)
    arguments = ["serve", "--port", port, "--database", f"sqlite:///{folder}/stabilizer.db"]
    process = processes.start("collector", "stabilizer", [*arguments, "--ready-file", str(ready)])
    return process, processes.wait_for_file(process, ready, SECONDS)


@pytest.fixture(name="wait_until")
def wait_until_fixture():
    return wait_until


@pytest.fixture
def processes(tmp_path):
    environment = {
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "STABILIZER_STRICT": "1",
        "STABILIZER_SPOOL_DIRECTORY": str(tmp_path / "spool"),
    }
    with ForkedProcesses(tmp_path / "logs", environment) as started:
        yield started


@pytest.fixture
def collector(processes, tmp_path):
    process, url = serve(processes, tmp_path)
    return Collector(processes, tmp_path, process, url)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, documents=600, seed=0)
    return folder


@pytest.fixture
def start_job(processes, collector, corpus, tmp_path):
    def start(name, *settings, mode="propose", steps=100_000):
        arguments = ["fit", "--data", str(corpus), "--steps", str(steps), "--run", name]
        arguments += ["--collector", collector.url, "--mode", mode, "--out", str(tmp_path / name)]
        arguments += ["--policy", str(policy_file("idefics-tiny"))]
        for setting in settings:
            arguments += ["--set", setting]
        return processes.start(name, "trainer", arguments)

    return start
