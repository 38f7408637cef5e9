"""Periodic sweep for lost runs and expired commands."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from fastapi.concurrency import run_in_threadpool

from stabilizer.collector.api.metrics import Metrics
from stabilizer.collector.services.container import Services
from stabilizer.errors import StabilizerError

logger = logging.getLogger(__name__)

_LONGEST_SECONDS: Final = 60.0
"""Longest pause between two sweeps that fail by a bug."""


class Sweeper:
    """Sweeps until stopped. A failed sweep is counted, logged and retried.

    An unreachable database is retried at the normal interval. An unexpected exception, i.e. a bug,
    makes the collector not ready and doubles the pause each time until a sweep succeeds. The
    process keeps running: jobs depend on it, and most bugs concern one run or one command.

    Args:
        services: Swept in a worker thread.
        interval_seconds: Time between the end of a sweep and the next.
        metrics: Counts sweeps.
    """

    def __init__(self, services: Services, interval_seconds: float, metrics: Metrics) -> None:
        self._services = services
        self._interval_seconds = interval_seconds
        self._metrics = metrics
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failing = False
        self._num_bugs = 0  # consecutive

    @property
    def is_running(self) -> bool:
        """Whether sweeps run; false before the start, after the end, and after a bug."""
        return self._task is not None and not self._task.done() and self._num_bugs == 0

    @property
    def pause_seconds(self) -> float:
        """Time until the next sweep; doubles with each consecutive bug."""
        longest = max(self._interval_seconds, _LONGEST_SECONDS)
        return min(self._interval_seconds * 2.0 ** min(self._num_bugs, 32), longest)

    @asynccontextmanager
    async def running(self, stop_seconds: float) -> AsyncIterator[None]:
        """Sweep in the background while the context is open.

        Args:
            stop_seconds: How long to wait at the end for a running sweep.
        """
        self._stop.clear()
        self._task = asyncio.create_task(self._run(), name="sweeper")
        try:
            yield
        finally:
            self._stop.set()
            await asyncio.wait({self._task}, timeout=stop_seconds)
            self._task.cancel()

    async def _run(self) -> None:
        while not self._stop.is_set():
            sweep = run_in_threadpool(self.sweep_once)
            [outcome] = await asyncio.gather(sweep, return_exceptions=True)
            self._count(outcome if isinstance(outcome, BaseException) else None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.pause_seconds):
                    await self._stop.wait()

    def _count(self, bug: BaseException | None) -> None:
        if bug is None:
            self._num_bugs = 0
            return
        self._num_bugs += 1
        self._metrics.sweeps.labels("failed").inc()
        # The traceback is the same every time: log it once.
        logger.critical(
            "sweep failed unexpectedly, will be retried in %g s: %r",
            self.pause_seconds,
            bug,
            exc_info=bug if self._num_bugs == 1 else None,
        )

    def sweep_once(self) -> bool:
        """Sweep now, in this thread; return whether it succeeded."""
        try:
            self._services.runs.sweep_lost()
            self._services.runs.sweep_clocks()
            self._services.commands.expire_due()
        except StabilizerError as error:
            self._metrics.sweeps.labels("failed").inc()
            # Log the first failure only: an outage of an hour must not fill the log.
            log = logger.debug if self._failing else logger.error
            log("sweep failed, will be retried: %s", error.message)
            self._failing = True
            return False
        if self._failing:
            logger.info("sweeps work again")
        self._failing = False
        self._metrics.sweeps.labels("done").inc()
        return True
