"""Waiting for commands without holding a thread.

A paused job asks again and again whether it may go on. Each of these requests waits as a coroutine,
so that a thousand paused jobs cost a thousand small objects and no thread of the pool.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from stabilizer.collector.services.changes import Change

Answer = TypeVar("Answer")


class Waiting:
    """One request that waits for news of a run."""

    def __init__(self) -> None:
        self._news = asyncio.Event()
        self.is_gone = False
        """Nobody is at the other end any more."""

    def wake(self) -> None:
        """Let the request look again. Only in the thread of the event loop."""
        self._news.set()

    def leave(self) -> None:
        """Note that the other end has gone, and wake up for it."""
        self.is_gone = True
        self.wake()

    async def news(self, timeout_seconds: float) -> bool:
        """Wait for a wake-up since the last one, or until the time runs out; tell which it was."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._news.wait()
        woken = self._news.is_set()
        self._news.clear()
        return woken


class LongPolls:
    """All requests that wait now, by run. Lives in one event loop; any thread may `notify`."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, set[Waiting]] = {}
        self._number = 0
        self._closing = False
        self._ends: list[Callable[[], None]] = []

    @property
    def is_closing(self) -> bool:
        """Whether the server is going down: nobody waits any more."""
        return self._closing

    def __len__(self) -> int:
        return self._number  # read by other threads, for which the sets may change at any time

    def open(self) -> None:
        """Take the running event loop; called once when the app starts."""
        self._loop = asyncio.get_running_loop()
        self._closing = False

    def at_close(self, end: Callable[[], None]) -> None:
        """Call `end` as well when the server is going down."""
        self._ends.append(end)

    def close(self) -> None:
        """Wake everybody for the last time. Only in the thread of the event loop."""
        self._closing = True
        for end in self._ends:
            end()
        for of_run in self._waiting.values():
            for waiting in of_run:
                waiting.wake()

    def hear(self, change: Change) -> None:
        """Wake the requests of a run if its job may have been given something to do."""
        if change.wakes_job and change.run_id is not None:
            self.notify(change.run_id)

    def notify(self, run_id: str) -> None:
        """Wake the requests of a run. From any thread; never blocks, never fails."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits in it
                loop.call_soon_threadsafe(self._wake, run_id)

    def _wake(self, run_id: str) -> None:
        for waiting in self._waiting.get(run_id, ()):
            waiting.wake()

    @contextlib.contextmanager
    def waiting(self, run_id: str) -> Iterator[Waiting]:
        """Be woken for a run from here on, so that nothing between look and wait is missed."""
        waiting = Waiting()
        self._waiting.setdefault(run_id, set()).add(waiting)
        self._number += 1
        try:
            yield waiting
        finally:
            self._number -= 1
            of_run = self._waiting[run_id]
            of_run.discard(waiting)
            if not of_run:
                del self._waiting[run_id]


async def poll_until_news(
    look: Callable[[], tuple[Answer, bool]],
    waiting: Waiting,
    polls: LongPolls,
    wait_seconds: float,
) -> Answer | None:
    """Look again at every wake-up until there is news, the time is up or the server ends.

    Args:
        look: Gives the answer of this moment and whether it is news; runs in a worker thread, and
            is never cut off half way, since a look marks commands as delivered.
        waiting: Registered before the first look.
        polls: Tells when the server ends.
        wait_seconds: 0 looks once.

    Returns:
        The answer, or None if nobody is there to hear it: then no look is made for it.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_seconds
    while True:
        answer, is_news = await run_in_threadpool(look)
        remaining = deadline - loop.time()
        if is_news or polls.is_closing or remaining <= 0:
            return answer
        # The time being up is no reason not to look: another collector may have changed the run.
        await waiting.news(remaining)
        if waiting.is_gone:
            return None


@contextlib.asynccontextmanager
async def watching(request: Request, waiting: Waiting) -> AsyncIterator[None]:
    """Notice when the client hangs up, so that no command is delivered to nobody."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        waiting.leave()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
