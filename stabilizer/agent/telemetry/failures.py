"""Failures of telemetry: what they mean, how they are counted and logged, when to retry."""

from __future__ import annotations

import logging
import random
import threading
from enum import Enum, auto

from stabilizer.agent.telemetry.client import RefusedError
from stabilizer.clock import Clock
from stabilizer.errors import TelemetryError
from stabilizer.protocol.batches import AgentHealth

logger = logging.getLogger("stabilizer.agent.telemetry")


class DeliveryVerdict(Enum):
    """What a failure means for the message that was to be delivered."""

    RETRY = auto()
    """The collector is away or unhealthy: retry later, with growing waits."""
    REFUSED = auto()
    """It refuses this job: an operator must act, a retry does not help."""
    REJECTED = auto()
    """It rejects this message: the next one may pass."""
    LOST_RUN = auto()
    """It does not know the run: register again."""


def judge_failure(error: TelemetryError) -> DeliveryVerdict:
    """Return what a failure means."""
    if not isinstance(error, RefusedError):
        permanent = error.code in ("redirect_refused", "tls_failed")
        return DeliveryVerdict.REFUSED if permanent else DeliveryVerdict.RETRY
    if error.status in (401, 403, 426):
        return DeliveryVerdict.REFUSED
    if error.code == "unknown_run":
        return DeliveryVerdict.LOST_RUN
    if error.code == "unknown_command":
        return DeliveryVerdict.REJECTED
    if error.status >= 500 or error.status in (404, 408, 425, 429):
        return DeliveryVerdict.RETRY
    return DeliveryVerdict.REJECTED


class Counters:
    """Counts of what was lost, failed or spooled; shared by training thread and sender.

    All frames that were handed over together count once: they are one step's measurement.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may call in again
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


class FailureLog:
    """Logs a failure once, and not again with every retry.

    Args:
        clock: Source of time.
        every_seconds: Shortest time between two lines about the same failure.
    """

    def __init__(self, clock: Clock, every_seconds: float) -> None:
        self._clock = clock
        self._every = every_seconds
        self._logged_at: dict[str, float] = {}

    def warn(self, key: str, message: str, *args: object) -> None:
        """Log a transient failure; the same key again only after `every_seconds`."""
        if self._may_log(key):
            logger.warning(message, *args)

    def unexpected(self, error: Exception, message: str) -> None:
        """Log an unexpected exception with its traceback; each type at the same rate."""
        if self._may_log(type(error).__name__):
            logger.error(message, exc_info=error)

    def error_once(self, key: str, message: str, *args: object) -> None:
        """Log a failure that an operator must fix; once until `recovered`."""
        if key not in self._logged_at:
            self._logged_at[key] = float("inf")
            logger.error(message, *args)

    def recovered(self, message: str, *args: object) -> None:
        """Log the recovery, if a failure was logged before."""
        if self._logged_at:
            self._logged_at.clear()
            logger.warning(message, *args)

    def _may_log(self, key: str) -> bool:
        now = self._clock.monotonic()
        if now - self._logged_at.get(key, float("-inf")) < self._every:
            return False
        self._logged_at[key] = now
        return True


class Backoff:
    """Exponential backoff with jitter.

    The jitter has its own generator: the job's random state is never touched.

    Args:
        first_seconds: Upper bound of the first wait.
        max_seconds: Upper bound of the longest wait.
        seed: Differs between jobs, so that they do not retry all at once.
    """

    def __init__(self, first_seconds: float, max_seconds: float, seed: str) -> None:
        self._first = first_seconds
        self._max = max_seconds
        self._random = random.Random(seed)  # noqa: S311  jitter is no secret
        self._until = 0.0
        self.num_failures = 0
        """Failures since the last success."""

    def fail(self, now: float, at_least_seconds: float = 0.0) -> None:
        """Count a failure and schedule the next try, after half to all of the current wait."""
        ceiling = min(self._max, self._first * 2.0 ** min(self.num_failures, 60))
        wait = ceiling * (0.5 + 0.5 * self._random.random())
        self._until = now + max(wait, at_least_seconds)
        self.num_failures += 1

    def succeed(self) -> None:
        """Reset."""
        self._until = 0.0
        self.num_failures = 0

    def try_now(self) -> None:
        """Allow the next try at once, and keep the count of failures."""
        self._until = 0.0

    def seconds_left(self, now: float) -> float:
        """Return the seconds until the next try; 0 if it is due."""
        return max(0.0, self._until - now) if self.num_failures else 0.0
