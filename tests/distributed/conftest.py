"""Two ranks as two processes, on a machine that may be busy."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ADDRESS_IN_USE = ("EADDRINUSE", "address already in use")


@pytest.fixture(scope="session")
def start_ranks(tmp_path_factory):
    """Return a function that runs a script of this folder on two ranks, until both have ended.

    The free port that the ranks meet at may be taken by another process before they come: then they
    meet at another. When one rank fails the other is ended, which would wait for it.
    """

    def start(script, *arguments, timeout=500):
        """Give both ranks the same arguments, and of a list of two each rank its own."""
        for _ in range(3):
            logs = [tmp_path_factory.mktemp("logs") / f"{rank}.log" for rank in range(2)]
            codes = _run(Path(__file__).parent / script, arguments, logs, timeout)
            texts = [log.read_text(errors="replace") for log in logs]
            if not any(sign in text for text in texts for sign in ADDRESS_IN_USE):
                break
        assert codes == [0, 0], "\n".join(texts)

    return start


def _run(script, arguments, logs, timeout):
    port = _free_port()
    processes = []
    for rank, log in enumerate(logs):
        own = [str(each[rank] if isinstance(each, list) else each) for each in arguments]
        with log.open("wb") as output:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-W", "ignore", str(script), *own],
                    env=os.environ
                    | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
                    | {"RANK": str(rank), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
                    | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if _wait(processes[0], 0.5) or _wait(processes[1], 0.5):
                break  # one has failed
            if [process.poll() for process in processes] == [0, 0]:
                break
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    return [process.returncode for process in processes]


def _wait(process, seconds):
    """Return whether it has failed within so many seconds."""
    try:
        return process.wait(seconds) != 0
    except subprocess.TimeoutExpired:
        return False


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
