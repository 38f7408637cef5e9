"""When to try again."""

from __future__ import annotations

import random


class Backoff:
    """Waits that double with every failure, spread by jitter.

    The jitter has its own generator: the job's random state is never touched.

    Args:
        first_seconds: Upper end of the first wait.
        max_seconds: Upper end of the longest wait.
        seed: Tells jobs apart, so that they do not come back all at once.
    """

    def __init__(self, first_seconds: float, max_seconds: float, seed: str) -> None:
        self._first = first_seconds
        self._max = max_seconds
        self._random = random.Random(seed)  # noqa: S311  jitter is no secret
        self._until = 0.0
        self.num_failures = 0
        """Failures since the last success."""

    def fail(self, now: float, at_least_seconds: float = 0.0) -> None:
        """Count a failure and set the next try; between half and all of the present wait."""
        ceiling = min(self._max, self._first * 2.0 ** min(self.num_failures, 60))
        wait = ceiling * (0.5 + 0.5 * self._random.random())
        self._until = now + max(wait, at_least_seconds)
        self.num_failures += 1

    def succeed(self) -> None:
        """Begin anew."""
        self._until = 0.0
        self.num_failures = 0

    def try_now(self) -> None:
        """Allow the next try at once, without forgetting the failures."""
        self._until = 0.0

    def seconds_left(self, now: float) -> float:
        """Seconds until the next try; 0 when it may be made."""
        return max(0.0, self._until - now) if self.num_failures else 0.0
