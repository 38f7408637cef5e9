"""From the buffer to the spool: when batches are made, and when they go to disk."""

from __future__ import annotations

import logging
from collections import deque

from stabilizer.agent.telemetry.batcher import Batcher
from stabilizer.agent.telemetry.buffer import Context, Entry
from stabilizer.agent.telemetry.counters import Counters
from stabilizer.agent.telemetry.delivery import Delivery
from stabilizer.agent.telemetry.spool import Record, SessionInfo, Spool
from stabilizer.errors import TelemetryError

_logger = logging.getLogger(__name__)
_RECORDS_IN_MEMORY = 8
_RETRY_SECONDS = 30.0


class Backlog:
    """Records in the order in which they were built. Used by the sender thread alone.

    The spool always holds the older ones: what is in memory goes there before anything newer.

    Args:
        spool: Takes records while the collector is away.
        counters: Count failures of the disk.
    """

    def __init__(self, spool: Spool, counters: Counters) -> None:
        self._spool = spool
        self._counters = counters
        self._memory: deque[Record] = deque()
        self._retry_at = float("-inf")
        self._read_at = float("-inf")

    def append(self, record: Record) -> None:
        """Add the newest record."""
        self._memory.append(record)

    @property
    def has_room(self) -> bool:
        """Whether more should be built; else what is not yet built waits in the buffer."""
        return len(self._memory) < _RECORDS_IN_MEMORY

    @property
    def is_spooling(self) -> bool:
        """Whether older records wait on disk."""
        return self._spool.is_filled

    def spill(self, now: float) -> None:
        """Move what is in memory to disk; if the disk fails, keep it, count, try again later."""
        if now < self._retry_at:
            return
        try:
            while self._memory:
                self._spool.append(self._memory[0])
                self._memory.popleft()
        except TelemetryError as error:
            self._disk_failed(error)
            self._retry_at = now + _RETRY_SECONDS

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
        self._retry_at = float("-inf")
        self.spill(now)
        lost = sum(record.num_frames for record in self._memory)
        self._counters.add(dropped=lost)
        self._memory.clear()
        try:
            self._spool.close()
        except TelemetryError as error:
            self._disk_failed(error)

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


class Intake:
    """Fills the backlog. Used by the sender thread alone.

    Args:
        context: Shared with training.
        batcher: Numbers the batches.
        backlog: Takes them.
        spool: Is told who this process is before anything is written.
        own: Knows who this process is.
    """

    def __init__(
        self, context: Context, batcher: Batcher, backlog: Backlog, spool: Spool, own: Delivery
    ) -> None:
        self._settings = context.settings
        self._buffer = context.buffer
        self._batcher = batcher
        self._backlog = backlog
        self._spool = spool
        self._own = own
        self._taken: deque[Entry] = deque()
        self._told: tuple[object, ...] = ()

    def collect(self, now: float, *, is_away: bool, is_ending: bool) -> None:
        """Make batches of what is due.

        Args:
            now: Monotonic seconds.
            is_away: The collector has failed: batches go to disk at once.
            is_ending: Nothing lingers any more.

        Raises:
            Exception: What reading the frames raises. What it hit is counted as dropped; what was
                taken with it is kept for the next call.
        """
        settings = self._settings
        is_behind = self._buffer.num_frames >= settings.buffer_steps // 2
        limit = settings.catch_up_steps if is_behind or is_ending else settings.batch_steps
        to_disk = is_away or is_behind or self._backlog.is_spooling
        while self._backlog.has_room and (self._taken or self._is_due(now, is_ending=is_ending)):
            if not self._taken:
                self._taken.extend(self._buffer.take(limit))
            self._build(limit)
            if to_disk:
                self.spill(now)
        if not self._backlog.has_room:
            self.spill(now)

    def spill(self, now: float) -> None:
        """Move the records in memory to disk."""
        own, starts = self._own, self._batcher.starts
        told = (own.run_id, own.base, len(self._batcher.catalogs), len(starts))
        if told != self._told:
            self._told = told
            self._spool.info = SessionInfo(
                message=own.message,
                run_id=own.run_id,
                base=own.base if own.is_registered else None,
                starts=dict(starts),
            )
        self._backlog.spill(now)

    def close(self, now: float) -> None:
        """Put everything on disk, what is still in the buffer included."""
        while self._taken or self._buffer.has_entries:
            if not self._taken:
                self._taken.extend(self._buffer.take(self._settings.catch_up_steps))
            self._build(self._settings.catch_up_steps)
            self.spill(now)
        self.spill(now)
        self._backlog.close(now)

    def seconds_to_due(self, now: float) -> tuple[float | None, int]:
        """Return when a batch is due, and how many waiting frames make it due at once."""
        if not self._backlog.has_room:
            return None, self._settings.buffer_steps + 1
        if self._taken:
            return 0.0, 1
        left = self._seconds_in_buffer(now)
        return left, 1 if left is None else self._settings.batch_steps

    def _is_due(self, now: float, *, is_ending: bool) -> bool:
        if is_ending:
            return self._buffer.has_entries
        return self._seconds_in_buffer(now) == 0.0

    def _seconds_in_buffer(self, now: float) -> float | None:
        return self._buffer.seconds_to_due(
            now,
            linger_seconds=self._settings.linger_seconds,
            batch_steps=self._settings.batch_steps,
        )

    def _build(self, limit: int) -> None:
        while self._taken:
            for record in self._batcher.add(self._taken.popleft(), limit):
                self._backlog.append(record)
        for record in self._batcher.flush():
            self._backlog.append(record)
