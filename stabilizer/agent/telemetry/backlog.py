"""Records between being built and being delivered: a few in memory, the rest in the spool."""

from __future__ import annotations

import logging
from collections import deque

from stabilizer.agent.telemetry.counters import Counters
from stabilizer.agent.telemetry.spool import Record, Spool
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
