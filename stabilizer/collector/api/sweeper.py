"""Looks every second or so for runs without a sign of life and for commands past their time."""

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
"""Between two sweeps that end by a mistake of ours."""


class Sweeper:
    """Sweeps until told to stop. A sweep that fails is counted and logged, and the next follows.

    After a mistake of ours, unlike a database that is away, readiness says that nobody sweeps, and
    the next sweep comes later each time, until one works again. The process goes on: jobs report
    and are commanded by it, and most mistakes are about one run or one command.

    Args:
        services: What is swept, in a worker thread.
        interval_seconds: Time between the end of a sweep and the next.
        metrics: Where sweeps are counted.
    """

    def __init__(self, services: Services, interval_seconds: float, metrics: Metrics) -> None:
        self._services = services
        self._interval_seconds = interval_seconds
        self._metrics = metrics
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failing = False
        self._num_mistakes = 0  # in a row

    @property
    def is_running(self) -> bool:
        """Whether sweeps go on; false before the start, after the end, and after a mistake."""
        return self._task is not None and not self._task.done() and self._num_mistakes == 0

    @property
    def pause_seconds(self) -> float:
        """Time until the next sweep; twice as long after each mistake of ours in a row."""
        longest = max(self._interval_seconds, _LONGEST_SECONDS)
        return min(self._interval_seconds * 2.0 ** min(self._num_mistakes, 32), longest)

    @asynccontextmanager
    async def running(self, stop_seconds: float) -> AsyncIterator[None]:
        """Sweep in the background for as long as this is open.

        Args:
            stop_seconds: How long to wait at the end for the sweep that runs then.
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
            self._note(outcome if isinstance(outcome, BaseException) else None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.pause_seconds):
                    await self._stop.wait()

    def _note(self, mistake: BaseException | None) -> None:
        if mistake is None:
            self._num_mistakes = 0
            return
        self._num_mistakes += 1
        self._metrics.sweeps.labels("failed").inc()
        # Where it is does not change from one to the next.
        logger.critical(
            "sweep ended by a mistake of ours, will be tried again in %g s: %r",
            self.pause_seconds,
            mistake,
            exc_info=mistake if self._num_mistakes == 1 else None,
        )

    def sweep_once(self) -> bool:
        """Sweep now, in this thread; tell whether it could be done."""
        try:
            self._services.runs.sweep_lost()
            self._services.commands.expire_due()
        except StabilizerError as error:
            self._metrics.sweeps.labels("failed").inc()
            # One line when it begins to fail; a database away for an hour must not fill a log.
            log = logger.debug if self._failing else logger.error
            log("sweep failed, will be tried again: %s", error.message)
            self._failing = True
            return False
        if self._failing:
            logger.info("sweeps work again")
        self._failing = False
        self._metrics.sweeps.labels("done").inc()
        return True
