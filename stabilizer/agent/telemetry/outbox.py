"""The outbox: from what training hands over to complete batches that wait for delivery.

`Buffer` is where the training thread and the sender thread meet. `Batcher` turns what waits there
into records, and `Outbox` holds the records: a few in memory, the rest in the spool. Records never
change after they are built: a record that is sent again is the same delivery.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

import numpy as np

from stabilizer.agent.telemetry.failures import Counters
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.agent.telemetry.spool import Record, RecordKind, SessionInfo, Spool
from stabilizer.clock import Clock
from stabilizer.errors import TelemetryError
from stabilizer.protocol.batches import (
    AgentHealth,
    AttemptStart,
    BatchHeader,
    Marker,
    SnapshotInfo,
)
from stabilizer.protocol.commands import CommandResult
from stabilizer.protocol.frames import FrameBlock, encode_batch
from stabilizer.protocol.runs import RunState
from stabilizer.protocol.series import Catalog

_logger = logging.getLogger(__name__)

MAX_EVENTS: Final = 10_000
"""Markers, attempts and results that wait; far more than any job has without a fault."""
MAX_MARKERS: Final = 1000
"""Markers in one batch."""
_RECORDS_IN_MEMORY: Final = 8
_RETRY_SECONDS: Final = 30.0
"""Wait after a failure of the disk."""


class FrameSource(Protocol):
    """The frames of one step, perhaps still on their way from the device."""

    def blocks(self) -> Sequence[tuple[Catalog, FrameBlock]]:
        """Wait for the copy and return the frames by catalog. Called once, in the sender thread."""
        ...


@dataclass(frozen=True, slots=True)
class ReportedAttempt:
    """An attempt as every one of its batches names it."""

    id: str
    start: AttemptStart


Blocks: TypeAlias = Sequence[tuple[Catalog, FrameBlock]]
JobEvent: TypeAlias = Marker | ReportedAttempt | CommandResult


@dataclass(frozen=True, slots=True)
class QueuedItem:
    """Something that the training thread has handed over.

    Args:
        ticket: Position in the order of handing over.
        attempt: Attempt in which it was handed over.
        put_at: Monotonic seconds.
        content: What it is.
    """

    ticket: int
    attempt: ReportedAttempt
    put_at: float
    content: FrameSource | JobEvent


@dataclass(frozen=True, slots=True)
class JobState:
    """The state of the run as the training thread sees it."""

    state: RunState = RunState.RUNNING
    step: int = 0
    message: str = ""


class Buffer:
    """Frames, events, the newest snapshot inventory and the newest state of the job.

    Bounded, and locked only for an append, never during input or output. The lock is reentrant: a
    signal handler of the training thread may hand something over in the middle of a put.

    Args:
        capacity: Puts of frames held; a further one drops the oldest.
        counters: Count the dropped ones.
    """

    def __init__(self, capacity: int, counters: Counters) -> None:
        self._capacity = capacity
        self._counters = counters
        self._condition = threading.Condition()
        self._frames: deque[QueuedItem] = deque()
        self._events: deque[QueuedItem] = deque()
        self._ticket = 0
        self._wake_at = 1
        self._is_woken = False
        self._has_result = False
        self._snapshots: tuple[SnapshotInfo, ...] = ()
        self._snapshots_at: float | None = None
        self._is_inventory_taken = False
        self._state = JobState()
        self._is_state_taken = True

    def put_frames(self, frames: FrameSource, attempt: ReportedAttempt, now: float) -> None:
        """Append frames; drop the oldest when full."""
        with self._condition:
            self._frames.append(self._item(frames, attempt, now))
            if len(self._frames) > self._capacity:
                self._frames.popleft()
                self._counters.add(dropped=1)
            if len(self._frames) >= self._wake_at:
                self._condition.notify()

    def put_event(self, event: JobEvent, attempt: ReportedAttempt, now: float) -> None:
        """Append an event; a result wakes the sender at once."""
        with self._condition:
            self._events.append(self._item(event, attempt, now))
            if len(self._events) > MAX_EVENTS:
                self._events.popleft()
                self._counters.add(dropped=1)
            if isinstance(event, CommandResult):
                self._has_result = self._is_woken = True
            self._condition.notify()

    def put_snapshots(self, infos: tuple[SnapshotInfo, ...], now: float) -> None:
        """Replace the inventory; the next batch carries it."""
        with self._condition:
            self._snapshots = infos
            self._snapshots_at = now
            self._is_inventory_taken = False
            self._condition.notify()

    def put_state(self, state: JobState) -> None:
        """Replace the state and wake the sender."""
        with self._condition:
            self._state = state
            self._is_state_taken = False
            self._is_woken = True
            self._condition.notify()

    def take(self, limit: int) -> list[QueuedItem]:
        """Take items in order, with at most `limit` puts of frames among them."""
        taken: list[QueuedItem] = []
        num_frames = 0
        with self._condition:
            while self._frames or self._events:
                is_frame = not self._events or (
                    bool(self._frames) and self._frames[0].ticket < self._events[0].ticket
                )
                if is_frame and num_frames == limit:
                    break
                num_frames += is_frame
                taken.append((self._frames if is_frame else self._events).popleft())
            if not self._events:
                self._has_result = False
        return taken

    def take_snapshots(self) -> tuple[SnapshotInfo, ...] | None:
        """Take the inventory if it has changed since it was last taken."""
        with self._condition:
            if self._is_inventory_taken:
                return None
            self._is_inventory_taken = True
            self._snapshots_at = None
            return self._snapshots

    def resend_snapshots(self) -> None:
        """Let the next batch carry the inventory again: the collector has dropped it."""
        with self._condition:
            self._is_inventory_taken = False

    def take_state(self) -> JobState:
        """Take the state to send it."""
        with self._condition:
            self._is_state_taken = True
            return self._state

    def resend_state(self) -> None:
        """Mark the state as new again: the one that was taken has not arrived."""
        with self._condition:
            self._is_state_taken = False

    @property
    def has_new_snapshots(self) -> bool:
        """Whether there is an inventory that no batch has carried yet."""
        return self._snapshots_at is not None

    @property
    def state(self) -> JobState:
        """The newest state."""
        with self._condition:
            return self._state

    @property
    def num_frames(self) -> int:
        """Puts of frames that wait."""
        return len(self._frames)

    @property
    def has_items(self) -> bool:
        """Whether frames, events or an inventory wait."""
        return bool(self._frames or self._events or self.has_new_snapshots)

    @property
    def has_new_state(self) -> bool:
        """Whether the state has changed since it was last taken."""
        return not self._is_state_taken

    @property
    def has_news(self) -> bool:
        """Whether anything waits that ends a long poll."""
        return self.has_items or self.has_new_state

    def seconds_to_due(
        self, now: float, *, linger_seconds: float, batch_steps: int
    ) -> float | None:
        """Return the seconds until a batch is due; None if nothing waits.

        A result and a full batch are due at once.
        """
        with self._condition:
            if self._has_result or len(self._frames) >= batch_steps:
                return 0.0
            times = [queue[0].put_at for queue in (self._frames, self._events) if queue]
            if self._snapshots_at is not None:
                times.append(self._snapshots_at)
            return max(0.0, min(times) + linger_seconds - now) if times else None

    def wait(self, timeout: float, wake_at: int) -> None:
        """Wait for an event, a state, or `wake_at` puts of frames. Called by the sender."""
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

    def _item(
        self, content: FrameSource | JobEvent, attempt: ReportedAttempt, now: float
    ) -> QueuedItem:
        self._ticket += 1
        return QueuedItem(self._ticket, attempt, now, content)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReporterContext:
    """What the training thread's side and the sender's side of one reporter share."""

    settings: ReporterSettings
    clock: Clock
    buffer: Buffer
    counters: Counters
    attempt: ReportedAttempt
    """The first attempt of the process."""


@dataclass(slots=True)
class _OpenBatch:
    """A batch that still takes frames of one attempt."""

    attempt: ReportedAttempt
    markers: list[Marker] = field(default_factory=list)
    blocks: dict[str, list[FrameBlock]] = field(default_factory=dict)
    num_frames: int = 0
    num_bytes: int = 0

    def takes(self, blocks: Blocks) -> bool:
        """Return whether the steps do not descend; within a batch they must not."""
        for catalog, block in blocks:
            held = self.blocks.get(catalog.id)
            if held and block.steps[0] < held[-1].steps[-1]:
                return False
        return True

    def add(self, blocks: Blocks) -> None:
        """Append the frames of one put."""
        for catalog, block in blocks:
            self.blocks.setdefault(catalog.id, []).append(block)
            self.num_bytes += block.values.nbytes
        self.num_frames += 1


class Batcher:
    """Builds records. Used by the sender thread alone.

    All frames of one put travel in one batch, and a batch belongs to one attempt, whose start it
    carries. The sequence counts the batches of an attempt.
    """

    def __init__(self, context: ReporterContext) -> None:
        self._buffer = context.buffer
        self._counters = context.counters
        self._settings = context.settings
        self._open: _OpenBatch | None = None
        self._attempt = context.attempt
        self._sequence = 0
        self._health = AgentHealth()
        self.last_step = 0
        """Newest step in the frames of the current attempt."""
        self.catalogs: dict[str, Catalog] = {}
        """Every catalog that a frame has named, by id."""

    def add(self, item: QueuedItem, num_steps: int) -> list[Record]:
        """Take one item; return the records that it completes.

        Args:
            item: From the buffer, in order.
            num_steps: Puts of frames that fill a batch.

        Raises:
            TelemetryError: The frames do not fit their catalog; they are counted as dropped. So
                are those of any other error that `FrameSource.blocks` raises.
        """
        content = item.content
        if isinstance(content, CommandResult):
            payload = content.model_dump_json().encode()
            return [*self.flush(), Record(RecordKind.RESULT, 0, payload)]
        done: list[Record] = []
        if self._open is not None and self._open.attempt is not item.attempt:
            done = self.flush()
        if isinstance(content, ReportedAttempt):
            self._batch(content)
        elif isinstance(content, Marker):
            batch = self._batch(item.attempt)
            batch.markers.append(content)
            if len(batch.markers) >= MAX_MARKERS:
                done += self.flush()
        else:
            done += self._add_frames(content, item.attempt, num_steps)
        return done

    def flush(self) -> list[Record]:
        """Complete the open batch; a changed inventory makes one of its own."""
        batch, self._open = self._open, None
        if batch is None and self._buffer.has_new_snapshots:
            batch = _OpenBatch(self._attempt)
        if batch is None:
            return []
        with self._counted_if_lost(batch.num_frames):
            return [self._close(batch)]

    def _batch(self, attempt: ReportedAttempt) -> _OpenBatch:
        if self._open is None:
            self._open = _OpenBatch(attempt)
        return self._open

    def _add_frames(
        self, frames: FrameSource, attempt: ReportedAttempt, num_steps: int
    ) -> list[Record]:
        with self._counted_if_lost(1):
            blocks = [pair for pair in frames.blocks() if len(pair[1])]
            for catalog, block in blocks:
                _check_shape(catalog, block)
        if not blocks:
            return []
        done = []
        if self._open is not None and not self._open.takes(blocks):
            done += self.flush()
        batch = self._batch(attempt)
        batch.add(blocks)
        for catalog, block in blocks:
            self.catalogs.setdefault(catalog.id, catalog)
            self.last_step = int(block.steps[-1])
        if batch.num_frames >= num_steps or batch.num_bytes >= self._settings.batch_bytes:
            done += self.flush()
        return done

    def _close(self, batch: _OpenBatch) -> Record:
        if batch.attempt is not self._attempt:
            self._attempt, self._sequence = batch.attempt, 0
        health = self._counters.health
        header = BatchHeader(
            attempt_id=batch.attempt.id,
            sequence=self._sequence,
            attempt_start=batch.attempt.start,
            markers=tuple(batch.markers),
            snapshots=self._buffer.take_snapshots(),
            health=None if health == self._health else health,
        )
        self._sequence += 1
        self._health = health
        payload = encode_batch(header, [_merge(blocks) for blocks in batch.blocks.values()])
        return Record(RecordKind.BATCH, batch.num_frames, payload)

    @contextmanager
    def _counted_if_lost(self, num_frames: int) -> Iterator[None]:
        is_done = False
        try:
            yield
            is_done = True
        finally:
            if not is_done:
                self._counters.add(dropped=num_frames)


class Outbox:
    """Records in the order in which they were built. Used by the sender thread alone.

    The spool always holds the older ones: what is in memory goes there before anything newer.

    Args:
        context: Shared with training.
        batcher: Builds the records.
        spool: Takes records while the collector is away.
        owner: Returns who this process is, as the spool stores it.
    """

    def __init__(
        self,
        context: ReporterContext,
        batcher: Batcher,
        spool: Spool,
        owner: Callable[[], SessionInfo],
    ) -> None:
        self._settings = context.settings
        self._buffer = context.buffer
        self._counters = context.counters
        self._batcher = batcher
        self._spool = spool
        self._owner = owner
        self._taken: deque[QueuedItem] = deque()
        self._memory: deque[Record] = deque()
        self._write_at = float("-inf")
        self._read_at = float("-inf")

    def collect(self, now: float, *, is_away: bool, is_ending: bool) -> None:
        """Build the batches that are due.

        Args:
            now: Monotonic seconds.
            is_away: The collector has failed: batches go to disk at once.
            is_ending: Nothing lingers any more.

        Raises:
            Exception: An error while reading frames. The frames that it hit are counted as
                dropped; what was taken with them is kept for the next call.
        """
        settings = self._settings
        is_behind = self._buffer.num_frames >= settings.buffer_steps // 2
        limit = settings.catch_up_steps if is_behind or is_ending else settings.batch_steps
        to_disk = is_away or is_behind or self._spool.is_filled
        while self._has_room and (self._taken or self._is_due(now, is_ending=is_ending)):
            self._build(limit)
            if to_disk:
                self._spill(now)
        if not self._has_room:
            self._spill(now)

    def head(self, now: float) -> Record | None:
        """Return the oldest record; while the disk cannot be read, the oldest in memory."""
        record = self._from_disk(now)
        if record is not None:
            return record
        return self._memory[0] if self._memory else None

    def pop(self, record: Record, now: float) -> None:
        """Remove the oldest record, which has been delivered or dropped."""
        if self._memory and self._memory[0] is record:
            self._memory.popleft()
            return
        try:
            self._spool.pop()
        except TelemetryError as error:
            self._disk_failed(error)
            self._read_at = now + _RETRY_SECONDS

    def close(self, now: float) -> None:
        """Put everything on disk and leave it there; count what the disk does not take."""
        while self._taken or self._buffer.has_items:
            self._build(self._settings.catch_up_steps)
            self._spill(now)
        self._write_at = float("-inf")
        self._spill(now)
        self._counters.add(dropped=sum(record.num_frames for record in self._memory))
        self._memory.clear()
        try:
            self._spool.close()
        except TelemetryError as error:
            self._disk_failed(error)

    def seconds_to_due(self, now: float) -> tuple[float | None, int]:
        """Return when a batch is due, and how many waiting frames make it due at once."""
        if not self._has_room:
            return None, self._settings.buffer_steps + 1
        if self._taken:
            return 0.0, 1
        left = self._seconds_in_buffer(now)
        return left, 1 if left is None else self._settings.batch_steps

    @property
    def _has_room(self) -> bool:
        """Whether more is built; otherwise it waits in the buffer."""
        return len(self._memory) < _RECORDS_IN_MEMORY

    def _is_due(self, now: float, *, is_ending: bool) -> bool:
        if is_ending:
            return self._buffer.has_items
        return self._seconds_in_buffer(now) == 0.0

    def _seconds_in_buffer(self, now: float) -> float | None:
        return self._buffer.seconds_to_due(
            now,
            linger_seconds=self._settings.linger_seconds,
            batch_steps=self._settings.batch_steps,
        )

    def _build(self, limit: int) -> None:
        if not self._taken:
            self._taken.extend(self._buffer.take(limit))
        while self._taken:
            self._memory.extend(self._batcher.add(self._taken.popleft(), limit))
        self._memory.extend(self._batcher.flush())

    def _spill(self, now: float) -> None:
        """Move what is in memory to disk; if the disk fails, keep it, count, try again later."""
        if now < self._write_at or not self._memory:
            return
        self._spool.info = self._owner()
        try:
            while self._memory:
                self._spool.append(self._memory[0])
                self._memory.popleft()
        except TelemetryError as error:
            self._disk_failed(error)
            self._write_at = now + _RETRY_SECONDS

    def _from_disk(self, now: float) -> Record | None:
        if now < self._read_at:
            return None
        try:
            return self._spool.head()
        except TelemetryError as error:
            self._disk_failed(error)
            self._read_at = now + _RETRY_SECONDS
            return None

    def _disk_failed(self, error: TelemetryError) -> None:
        self._counters.add(failures=1)
        _logger.warning("%s; frames wait in memory, the oldest are dropped", error)


def _check_shape(catalog: Catalog, block: FrameBlock) -> None:
    expected = (len(block.steps), len(catalog))
    masks = expected if block.present is None else block.present.shape
    if block.values.shape != expected or masks != expected or len(block.times) != expected[0]:
        raise TelemetryError(
            f"frames of catalog {catalog.id} have shape {block.values.shape}; allowed: {expected}",
            code="malformed_frames",
        )


def _merge(blocks: Sequence[FrameBlock]) -> FrameBlock:
    """Concatenate the frames of one catalog."""
    if len(blocks) == 1:
        return blocks[0]
    present = None
    if any(block.present is not None for block in blocks):
        masks = (
            np.ones(block.values.shape, np.bool_) if block.present is None else block.present
            for block in blocks
        )
        present = np.concatenate(list(masks))
    return FrameBlock(
        catalog=blocks[0].catalog,
        steps=np.concatenate([block.steps for block in blocks]),
        times=np.concatenate([block.times for block in blocks]),
        values=np.concatenate([block.values for block in blocks]),
        present=present,
    )
