"""The processes of the demo: started as a user would start them, ended by their process ids."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from stabilizer.clock import Clock, SystemClock
from stabilizer.errors import StabilizerError

_POLL_SECONDS = 0.05
_STOP_SECONDS = 10.0


class ProcessFailedError(StabilizerError):
    """A process of the demo failed or never became ready; the message ends with its log."""

    code = "process_failed"


@dataclass(slots=True)
class Process:
    """A child process with its log file."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.popen.poll() is None

    def failure(self) -> ProcessFailedError:
        """Describe how it ended, with the end of its log."""
        tail = self.log.read_text(errors="replace").splitlines()[-15:]
        state = "is not ready" if self.is_running else f"ended with status {self.popen.returncode}"
        return ProcessFailedError(
            "\n  ".join([f"{self.name} {state}; {self.log} ends with:", *tail])
        )


@dataclass(slots=True)
class Processes:
    """Children that end when this ends, whatever happens.

    Args:
        folder: Where their logs go.
        environment: Added to the environment of this process.
        clock: Injected for tests.
    """

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    clock: Clock = field(default_factory=SystemClock)
    children: list[Process] = field(default_factory=list)

    def start(self, name: str, module: str, arguments: Sequence[str]) -> Process:
        """Start `python -m module arguments`, its output in `<folder>/<name>.log`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(  # noqa: S603  our own modules, no shell
                [sys.executable, "-m", module, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.environment},
                # A Ctrl-C at the terminal is ours to handle: children are ended in order.
                start_new_session=True,
            )
        child = Process(name, popen, log)
        self.children.append(child)
        return child

    def run(self, name: str, module: str, arguments: Sequence[str], timeout: float) -> None:
        """Start a process and wait for its good end.

        Raises:
            ProcessFailedError: It ended badly or did not end in time.
        """
        child = self.start(name, module, arguments)
        with suppress(subprocess.TimeoutExpired):
            child.popen.wait(timeout)
        if child.is_running or child.popen.returncode != 0:
            raise child.failure()

    def wait_for_file(self, child: Process, path: Path, timeout: float) -> str:
        """Return the content of a file that a child writes when it is ready.

        Raises:
            ProcessFailedError: The child ended, or the file did not come in time.
        """
        deadline = self.clock.monotonic() + timeout
        while not (path.exists() and path.read_text().strip()):
            if not child.is_running or self.clock.monotonic() > deadline:
                raise child.failure()
            time.sleep(_POLL_SECONDS)
        return path.read_text().strip()

    def stop(self) -> None:
        """End the children, newest first: politely, then for good."""
        for child in reversed(self.children):
            if child.is_running:
                child.popen.terminate()
                try:
                    child.popen.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    # The whole session: data loader workers too.
                    os.killpg(child.popen.pid, signal.SIGKILL)
                    child.popen.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
