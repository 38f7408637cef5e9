"""Start `python -m ...` as a fork of a process that has imported torch, Lightning, and the servers.

Importing them takes a new interpreter ten seconds of CPU time. Use this where the start itself is
not the subject; the test of the demo and the tests of single commands start real interpreters.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

from trainer.demo.processes import Process, Processes

ROOT = Path(__file__).parents[1]
PRELOADED = [
    "dashboard.app",
    "stabilizer.agent.integrations.lightning",
    "stabilizer.cli.main",
    "stabilizer.collector.api.app",
    "trainer.cli",
    "trainer.demo.story",
    "trainer.run",
]


@functools.cache
def context():
    """Return the context whose processes are forks; its server starts once per worker."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}):
        forkserver.ensure_running()
    return context


class Fork:
    """A forked process with the interface of `subprocess.Popen`, as far as tests use it."""

    def __init__(self, process):
        self._process = process

    @property
    def pid(self):
        return self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode

    def terminate(self):
        self._process.terminate()

    def kill(self):
        self._process.kill()


def start_module(module, arguments, log, environment=None):
    """Start `python -m module arguments`, its output in a file, with more variables."""
    given = (module, list(arguments), {**os.environ, **(environment or {})}, str(log))
    process = context().Process(target=_run_module, args=given, name=module)
    process.start()
    return Fork(process)


class ForkedProcesses(Processes):
    """The processes of the demo, forked."""

    def start(self, name, module, arguments):
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{name}.log"
        log.unlink(missing_ok=True)
        child = Process(name, start_module(module, arguments, log, self.environment), log)
        self.children.append(child)
        return child


def become(arguments, environment, log):
    """Set what a new process has of its own: session, output, environment, signals, arguments."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor, number in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, number)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method("fork", force=True)
    sys.argv = arguments


def _run_module(module, arguments, environment, log):
    become([module, *arguments], environment, log)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:  # what an interpreter does at its end, and a fork of multiprocessing does not
        threading._shutdown()
        atexit._run_exitfuncs()
