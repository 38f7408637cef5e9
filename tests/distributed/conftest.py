"""Ranks as processes, on a machine that may be busy."""

from __future__ import annotations

import multiprocessing.connection
import socket
import time
from pathlib import Path

import pytest

from tests.distributed.launching import run_script
from tests.forked import ROOT, context

ADDRESS_IN_USE = ("EADDRINUSE", "address already in use")


@pytest.fixture(scope="session")
def start_ranks(tmp_path_factory):
    """Return a function that runs a script of this folder on some ranks until all have ended.

    If another process takes the ranks' port first, they are started again on another port. When one
    rank fails, the others are killed, since they would wait for it.
    """

    def start(script, *arguments, ranks=2, timeout=500):
        """Pass the arguments to all ranks; a list has one argument for each rank."""
        for _ in range(3):
            logs = [tmp_path_factory.mktemp("logs") / f"{rank}.log" for rank in range(ranks)]
            codes = _run(Path(__file__).parent / script, arguments, logs, timeout)
            texts = [log.read_text(errors="replace") for log in logs]
            if not any(sign in text for text in texts for sign in ADDRESS_IN_USE):
                break
        assert codes == [0] * ranks, "\n".join(texts)

    return start


def _run(script, arguments, logs, timeout):
    port = _free_port()
    processes = []
    for rank, log in enumerate(logs):
        own = [str(each[rank] if isinstance(each, list) else each) for each in arguments]
        environment = (
            {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(len(logs))}
            | {"RANK": str(rank), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
            | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        )
        process = context().Process(
            target=run_script, args=(str(script), own, environment, str(log))
        )
        process.start()
        processes.append(process)
    try:
        deadline = time.monotonic() + timeout
        codes = [None] * len(logs)
        while time.monotonic() < deadline and None in codes and not any(codes):
            multiprocessing.connection.wait([p.sentinel for p in processes if p.is_alive()], 0.5)
            codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
    return [process.exitcode for process in processes]


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
