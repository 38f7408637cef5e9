"""Says what goes wrong, once and clearly, and not again with every try."""

from __future__ import annotations

import logging

from stabilizer.clock import Clock

_logger = logging.getLogger("stabilizer.agent.telemetry")


class TroubleLog:
    """A log with a memory.

    Args:
        clock: Tells how long ago something was said.
        every_seconds: Shortest time between two lines about the same trouble.
    """

    def __init__(self, clock: Clock, every_seconds: float) -> None:
        self._clock = clock
        self._every = every_seconds
        self._said_at: dict[str, float] = {}

    def warn(self, key: str, message: str, *args: object) -> None:
        """Log a trouble that may pass; the same key again only after a while."""
        if self._may_say(key):
            _logger.warning(message, *args)

    def mistake(self, error: Exception, message: str) -> None:
        """Log an exception that nobody foresaw, with its traceback; each type as seldom."""
        if self._may_say(type(error).__name__):
            _logger.error(message, exc_info=error)

    def error_once(self, key: str, message: str, *args: object) -> None:
        """Log a trouble that a person must mend; once until `recovered`."""
        if key not in self._said_at:
            self._said_at[key] = float("inf")
            _logger.error(message, *args)

    def recovered(self, message: str, *args: object) -> None:
        """Log that all is well again, if anything was said before."""
        if self._said_at:
            self._said_at.clear()
            _logger.warning(message, *args)

    def _may_say(self, key: str) -> bool:
        now = self._clock.monotonic()
        if now - self._said_at.get(key, float("-inf")) < self._every:
            return False
        self._said_at[key] = now
        return True
