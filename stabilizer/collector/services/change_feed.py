"""Registry of committed changes: wakes paused jobs in a long poll and pages on an event stream."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from stabilizer.protocol.views import ChangeEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one committed transaction changed."""

    run_id: str | None
    """None: the global switch or silences."""
    frames: bool = False
    """Samples were stored."""
    decisions: bool = False
    """Anything else that a page shows changed."""
    wakes_job: bool = False
    """The job may have something to do."""
    step: int = 0
    """Newest step of the run."""


class Audience(Enum):
    """Who listens: a job for commands, or a page for every change."""

    JOB = auto()
    PAGE = auto()


@dataclass(slots=True)
class _Record:
    """Summary of all changes of a run so far; `last*` number them among those of all runs."""

    version: int = 0
    step: int = 0
    last: int = 0
    last_frames: int = 0
    last_decisions: int = 0


class ChangeListener:
    """One request that waits for changes. Lives in the event loop."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self.is_gone = False
        """The client has disconnected."""

    def wake(self) -> None:
        """End the current wait, or the next one."""
        self._woken.set()

    def leave(self) -> None:
        """Mark the client as disconnected and end the wait."""
        self.is_gone = True
        self.wake()

    async def wait(self, timeout_seconds: float) -> bool:
        """Wait for a wake-up since the last call; return False on timeout."""
        await _wait(self._woken, timeout_seconds)
        woken = self._woken.is_set()
        self._woken.clear()
        return woken


class ChangeFeed:
    """Counts the changes of each run and wakes listeners.

    `notify`, `cursor` and `since` are thread-safe and never block; the rest belongs to one event
    loop. A listener waits as a coroutine, so that a thousand paused jobs hold no thread. It keeps
    only a cursor: nothing queues up for a slow one, and missed changes collapse into one event per
    run.

    On PostgreSQL, changes committed by another collector are not seen here; a long poll therefore
    reads the database again when its time is up.
    """

    def __init__(self) -> None:
        self.start_id = uuid.uuid4().hex
        """Identifies this start of the collector; cursors and versions are valid within it only."""
        self._lock = threading.Lock()
        self._records: OrderedDict[str | None, _Record] = OrderedDict()  # last changed last
        self._number = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = asyncio.Event()
        self._listeners: dict[tuple[Audience, str | None], set[ChangeListener]] = {}
        self._counts = dict.fromkeys(Audience, 0)

    @property
    def is_closing(self) -> bool:
        """Whether the server is shutting down: no request may wait any more."""
        return self._closing.is_set()

    def num_listeners(self, audience: Audience) -> int:
        """Return how many requests wait now. Thread-safe."""
        return self._counts[audience]

    def open(self) -> None:
        """Bind to the running event loop; called when the app starts."""
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End all waits, present and future. Call it in the event loop."""
        self._closing.set()
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.wake()

    def notify(self, change: Change) -> None:
        """Record a committed change and wake its listeners. From any thread."""
        with self._lock:
            self._record(change)
        if self._loop is not None and any(self._counts.values()):
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._wake, change)

    def _record(self, change: Change) -> None:
        self._number += 1
        record = self._records.setdefault(change.run_id, _Record())
        self._records.move_to_end(change.run_id)
        record.version += 1
        record.step = change.step
        record.last = self._number
        if change.frames:
            record.last_frames = self._number
        if change.decisions:
            record.last_decisions = self._number

    def _wake(self, change: Change) -> None:
        for (audience, run_id), listeners in self._listeners.items():
            if audience is Audience.JOB:
                concerned = change.wakes_job and run_id == change.run_id
            else:
                concerned = change.run_id is None or run_id in (None, change.run_id)
            if concerned:
                for listener in listeners:
                    listener.wake()

    @contextlib.contextmanager
    def listening(self, audience: Audience, run_id: str | None) -> Iterator[ChangeListener]:
        """Register a listener. Do so before the first read: then no change is missed.

        Args:
            audience: Jobs are woken by `wakes_job` only.
            run_id: None, for pages, listens to all runs.
        """
        listener, key = ChangeListener(), (audience, run_id)
        self._listeners.setdefault(key, set()).add(listener)
        self._counts[audience] += 1
        try:
            yield listener
        finally:
            self._counts[audience] -= 1
            self._listeners[key].discard(listener)
            if not self._listeners[key]:
                del self._listeners[key]

    async def pause(self, seconds: float) -> None:
        """Sleep until the time is up or the server stops."""
        await _wait(self._closing, seconds)

    def cursor(self) -> int:
        """Return the number of the newest change."""
        with self._lock:
            return self._number

    def since(self, cursor: int, run_id: str | None = None) -> tuple[int, list[ChangeEvent]]:
        """Return the current cursor and the changes after the given one, one event per run.

        Args:
            cursor: From an earlier call.
            run_id: Only this run, the global switch and silences; None for everything.
        """
        with self._lock:
            if run_id is None:
                names = self._changed_after(cursor)
            else:
                names = [name for name in (None, run_id) if name in self._records]
            found = [(name, self._records[name]) for name in names]
            events = [
                _event(name, record, cursor) for name, record in found if record.last > cursor
            ]
            return self._number, events

    def _changed_after(self, cursor: int) -> list[str | None]:
        names: list[str | None] = []
        for name in reversed(self._records):
            if self._records[name].last <= cursor:
                break
            names.append(name)
        names.reverse()
        return names


def _event(run_id: str | None, record: _Record, cursor: int) -> ChangeEvent:
    return ChangeEvent(
        run_id=run_id,
        frames=record.last_frames > cursor,
        decisions=record.last_decisions > cursor,
        version=record.version,
        step=record.step,
    )


async def _wait(event: asyncio.Event, timeout_seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_seconds):
            await event.wait()
