"""Counts of what was lost, failed or put aside since the job began."""

from __future__ import annotations

import threading

from stabilizer.protocol.batches import AgentHealth


class Counters:
    """Counts shared by the training thread and the sender.

    All frames that were handed over together count once: they are one step's measurement.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may come back in
        self._dropped = 0
        self._failures = 0
        self._spooled = 0

    def add(self, *, dropped: int = 0, failures: int = 0, spooled: int = 0) -> None:
        """Add to the counts."""
        with self._lock:
            self._dropped += dropped
            self._failures += failures
            self._spooled += spooled

    @property
    def health(self) -> AgentHealth:
        """The counts as they are sent to the collector."""
        with self._lock:
            return AgentHealth(
                frames_dropped=self._dropped,
                send_failures=self._failures,
                frames_spooled=self._spooled,
            )
