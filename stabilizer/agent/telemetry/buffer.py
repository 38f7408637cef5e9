"""The meeting point of training and sender: bounded, and held only for an append.

The lock is never held during input or output. It is reentrant, since a signal handler of the
training thread may hand something over in the middle of a put.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from stabilizer.agent.telemetry.attempts import AttemptBook, Start
from stabilizer.agent.telemetry.counters import Counters
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.clock import Clock
from stabilizer.protocol.batches import Marker, SnapshotInfo
from stabilizer.protocol.commands import CommandResult
from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.runs import RunState
from stabilizer.protocol.series import Catalog

MAX_NOTES = 10_000
"""Markers, starts and results that wait; far more than any job has without a fault."""


class FrameSource(Protocol):
    """The frames of one step, perhaps still on their way from the device."""

    def blocks(self) -> Sequence[tuple[Catalog, FrameBlock]]:
        """Wait for the copy and return the frames by catalog. Called once, in the sender thread."""
        ...


Note: TypeAlias = Marker | Start | CommandResult


@dataclass(frozen=True, slots=True)
class Entry:
    """Something handed over by the training thread.

    Args:
        ticket: Place in the order of handing over.
        attempt: Local attempt in which it was handed over.
        put_at: Monotonic seconds.
        content: What it is.
    """

    ticket: int
    attempt: int
    put_at: float
    content: FrameSource | Note


@dataclass(frozen=True, slots=True)
class StateChange:
    """The state of the run as the training thread sees it."""

    state: RunState = RunState.RUNNING
    step: int = 0
    message: str = ""


class Buffer:
    """Frames, notes, the newest snapshot inventory and the newest state.

    Args:
        capacity: Puts of frames held; a further one drops the oldest, which is counted.
        counters: Where drops are counted.
    """

    def __init__(self, capacity: int, counters: Counters) -> None:
        self._capacity = capacity
        self._counters = counters
        self._condition = threading.Condition()
        self._frames: deque[Entry] = deque()
        self._notes: deque[Entry] = deque()
        self._ticket = 0
        self._wake_at = 1
        self._is_woken = False
        self._has_result = False
        self._snapshots: tuple[SnapshotInfo, ...] = ()
        self._snapshots_at: float | None = None
        self._is_inventory_told = False
        self._state = StateChange()
        self._is_state_told = True

    def put_frames(self, frames: FrameSource, attempt: int, now: float) -> None:
        """Append frames; drop the oldest when full."""
        with self._condition:
            self._frames.append(self._entry(frames, attempt, now))
            if len(self._frames) > self._capacity:
                self._frames.popleft()
                self._counters.add(dropped=1)
            if len(self._frames) >= self._wake_at:
                self._condition.notify()

    def put_note(self, note: Note, attempt: int, now: float) -> None:
        """Append a note; a result makes the sender hurry."""
        with self._condition:
            self._notes.append(self._entry(note, attempt, now))
            if len(self._notes) > MAX_NOTES:
                self._notes.popleft()
                self._counters.add(dropped=1)
            if isinstance(note, CommandResult):
                self._has_result = self._is_woken = True
            self._condition.notify()

    def put_snapshots(self, infos: tuple[SnapshotInfo, ...], now: float) -> None:
        """Replace the inventory; it travels with the next batch."""
        with self._condition:
            self._snapshots = infos
            self._snapshots_at = now
            self._is_inventory_told = False
            self._condition.notify()

    def put_state(self, change: StateChange) -> None:
        """Replace the state and make the sender tell it."""
        with self._condition:
            self._state = change
            self._is_state_told = False
            self._is_woken = True
            self._condition.notify()

    def take(self, limit: int) -> list[Entry]:
        """Take entries in order, with at most `limit` puts of frames among them."""
        taken: list[Entry] = []
        num_frames = 0
        with self._condition:
            while self._frames or self._notes:
                is_frame = not self._notes or (
                    bool(self._frames) and self._frames[0].ticket < self._notes[0].ticket
                )
                if is_frame and num_frames == limit:
                    break
                num_frames += is_frame
                taken.append((self._frames if is_frame else self._notes).popleft())
            if not self._notes:
                self._has_result = False
        return taken

    def take_snapshots(self) -> tuple[SnapshotInfo, ...] | None:
        """Take the inventory if it has changed since it was last taken."""
        with self._condition:
            if self._is_inventory_told:
                return None
            self._is_inventory_told = True
            self._snapshots_at = None
            return self._snapshots

    def retell_snapshots(self) -> None:
        """The collector has forgotten the inventory: the next batch carries it again."""
        with self._condition:
            self._is_inventory_told = False

    def take_state(self) -> StateChange:
        """Take the state in order to tell it."""
        with self._condition:
            self._is_state_told = True
            return self._state

    def retell_state(self) -> None:
        """The state that was taken has not arrived: it is to be told again."""
        with self._condition:
            self._is_state_told = False

    @property
    def has_new_snapshots(self) -> bool:
        """Whether the job has told an inventory that no batch has carried yet."""
        return self._snapshots_at is not None

    @property
    def state(self) -> StateChange:
        """The newest state."""
        with self._condition:
            return self._state

    @property
    def num_frames(self) -> int:
        """Puts of frames that wait."""
        return len(self._frames)

    @property
    def has_entries(self) -> bool:
        """Whether frames, notes or an inventory wait."""
        return bool(self._frames or self._notes or self.has_new_snapshots)

    @property
    def has_new_state(self) -> bool:
        """Whether the state has changed since it was last taken."""
        return not self._is_state_told

    @property
    def has_news(self) -> bool:
        """Whether anything waits that ends a long poll."""
        return self.has_entries or self.has_new_state

    def seconds_to_due(
        self, now: float, *, linger_seconds: float, batch_steps: int
    ) -> float | None:
        """Return when a batch should be made of what waits, from `now` on; None for nothing.

        A result never lingers, nor does a full batch.
        """
        with self._condition:
            if self._has_result or len(self._frames) >= batch_steps:
                return 0.0
            oldest = self._oldest()
            return None if oldest is None else max(0.0, oldest + linger_seconds - now)

    def wait(self, timeout: float, wake_at: int) -> None:
        """Wait for a note, a state, or `wake_at` puts of frames. Called by the sender."""
        with self._condition:
            if not self._is_woken and len(self._frames) < wake_at:
                self._wake_at = wake_at
                self._condition.wait(timeout)
            self._is_woken = False

    def wake(self) -> None:
        """End the sender's wait."""
        with self._condition:
            self._is_woken = True
            self._condition.notify()

    def _entry(self, content: FrameSource | Note, attempt: int, now: float) -> Entry:
        self._ticket += 1
        return Entry(self._ticket, attempt, now, content)

    def _oldest(self) -> float | None:
        times = [queue[0].put_at for queue in (self._frames, self._notes) if queue]
        if self._snapshots_at is not None:
            times.append(self._snapshots_at)
        return min(times, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One reporter's shared objects."""

    settings: ReporterSettings
    clock: Clock
    buffer: Buffer
    book: AttemptBook
    counters: Counters
