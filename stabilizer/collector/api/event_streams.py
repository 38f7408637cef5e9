"""Pages that are open: each hears of changes as server-sent events, without holding a thread.

A stream holds no queue, only how far it has got in `Changes`: what happens while its client is slow
comes as one event for each run.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Final

from fastapi.sse import format_sse_event

from stabilizer.collector.api.long_poll import Waiting
from stabilizer.collector.services.changes import Change, Changes
from stabilizer.protocol.views import CHANGE_EVENT, HELLO_EVENT, ChangeEvent, HelloEvent

PACE_SECONDS: Final = 0.1
"""A stream tells of a run at most once in this time."""
HEARTBEAT_SECONDS: Final = 10.0
"""A comment is sent after so much silence: proxies keep the connection, clients know it lives."""
HEARTBEAT: Final = format_sse_event(comment="alive")

_Key = str | None
_ALL: Final[_Key] = None
"""Under this key stand the streams that follow every run."""


class EventStreams:
    """All streams that are open now. Lives in one event loop; any thread may `notify`.

    Args:
        changes: Where changes are looked up.
        pace_seconds: Time between two looks of a stream.
        heartbeat_seconds: Longest silence of a stream.
    """

    def __init__(
        self,
        changes: Changes,
        *,
        pace_seconds: float = PACE_SECONDS,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._changes = changes
        self._pace_seconds = pace_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[_Key, set[Waiting]] = {}
        self._number = 0
        self._closing = asyncio.Event()

    def __len__(self) -> int:
        return self._number  # read by other threads, for which the sets may change at any time

    def open(self) -> None:
        """Take the running event loop; called once when the app starts."""
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End all streams. Only in the thread of the event loop."""
        self._closing.set()
        for waiting in self._everybody():
            waiting.wake()

    def notify(self, change: Change) -> None:
        """Wake the streams that follow a run. From any thread; never blocks, never fails."""
        loop = self._loop
        if loop is not None and self._number:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits in it
                loop.call_soon_threadsafe(self._wake, change.run_id)

    def _wake(self, run_id: str | None) -> None:
        concerned = (
            self._everybody()
            if run_id is None
            else [*self._waiting.get(_ALL, ()), *self._waiting.get(run_id, ())]
        )
        for waiting in concerned:
            waiting.wake()

    def _everybody(self) -> list[Waiting]:
        return [waiting for of_key in self._waiting.values() for waiting in of_key]

    async def follow(self, run_id: str | None) -> AsyncIterator[bytes]:
        """Tell of changes from now on until the server ends.

        Args:
            run_id: Only this run, and what concerns all runs; None for everything.

        Yields:
            Encoded events: a hello, then changes, with comments in times of silence.
        """
        with self._listening(run_id) as waiting:
            cursor = self._changes.cursor()
            hello = HelloEvent(start_id=self._changes.start_id)
            yield format_sse_event(event=HELLO_EVENT, data_str=hello.model_dump_json())
            while not self._closing.is_set():
                cursor, events = self._changes.since(cursor, run_id)
                if events:
                    yield b"".join(map(_encode, events))
                    await self._pace()
                elif not await waiting.news(self._heartbeat_seconds):
                    yield HEARTBEAT

    async def _pace(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pace_seconds):
                await self._closing.wait()

    @contextlib.contextmanager
    def _listening(self, run_id: str | None) -> Iterator[Waiting]:
        waiting = Waiting()
        self._waiting.setdefault(run_id, set()).add(waiting)
        self._number += 1
        try:
            yield waiting
        finally:
            self._number -= 1
            of_key = self._waiting[run_id]
            of_key.discard(waiting)
            if not of_key:
                del self._waiting[run_id]


def _encode(event: ChangeEvent) -> bytes:
    return format_sse_event(event=CHANGE_EVENT, data_str=event.model_dump_json())
