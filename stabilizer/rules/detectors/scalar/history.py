"""The last samples of a few series in order of size, and baselines of them.

In plain floats what `ring.py` and `baseline.py` are on arrays.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from stabilizer.rules.detectors.baseline import REFRESH_EVERY
from stabilizer.rules.detectors.interface import State
from stabilizer.rules.detectors.ring import MAD_TO_SIGMA

INF = math.inf


class ScalarRing:
    """The last `window` samples of one series, in float32, and the steps of them.

    Attributes:
        ordered: The samples in order of size.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.values = array("f", [INF]) * window
        self.steps = array("q", [-1]) * window
        self.next = 0
        self.ordered: list[float] = []

    def push(self, step: int, value: float) -> None:
        """Add a finite sample; the oldest gives way."""
        at, values, ordered = self.next, self.values, self.ordered
        if len(ordered) == self.window:
            del ordered[bisect_left(ordered, values[at])]
        values[at] = value
        insort(ordered, values[at])  # as rounded to float32
        self.steps[at] = step
        self.next = (at + 1) % self.window

    def rewind(self, step: int) -> None:
        """Drop the samples after a step."""
        while self.ordered:
            newest = (self.next - 1) % self.window
            if self.steps[newest] <= step:
                return
            del self.ordered[bisect_left(self.ordered, self.values[newest])]
            self.values[newest], self.steps[newest], self.next = INF, -1, newest

    def clear(self) -> None:
        """Drop all samples."""
        self.values = array("f", [INF]) * self.window
        self.steps = array("q", [-1]) * self.window
        self.next = 0
        self.ordered.clear()

    def median(self) -> float:
        """Return the median; +inf without samples."""
        ordered = self.ordered
        last = len(ordered) - 1
        return 0.5 * (ordered[last // 2] + ordered[(last + 1) // 2]) if ordered else INF

    def spread(self, center: float) -> float:
        """Return the scaled median absolute deviation from `center`; NaN without samples."""
        if not self.ordered:
            return math.nan
        deviations = np.abs(np.array(self.ordered, np.float32) - np.float32(center))
        ordered: list[float] = np.sort(deviations).tolist()
        last = len(ordered) - 1
        return MAD_TO_SIGMA * (0.5 * (ordered[last // 2] + ordered[(last + 1) // 2]))

    def quantile(self, share: float) -> float:
        """Return the quantile at a share in [0, 1]; +inf without samples."""
        ordered = self.ordered
        if not ordered:
            return INF
        return ordered[math.floor(share * (len(ordered) - 1) + 0.5)]


def rings_state(rings: Sequence[ScalarRing], window: int, prefix: str) -> State:
    """Return the rings as the arrays of a `SampleRing`."""
    shape = (len(rings), window)
    return {
        f"{prefix}.values": np.array([ring.values for ring in rings], np.float32).reshape(shape),
        f"{prefix}.steps": np.array([ring.steps for ring in rings], np.int64).reshape(shape),
        f"{prefix}.count": np.array([len(ring.ordered) for ring in rings], np.int64),
        f"{prefix}.next": np.array([ring.next for ring in rings], np.int64),
    }


def load_rings(state: State, window: int, prefix: str) -> list[ScalarRing]:
    """Return the rings of a saved `SampleRing`.

    Raises:
        KeyError: An array is missing.
        ValueError: The window is another one.
    """
    values = np.array(state[f"{prefix}.values"], np.float32)
    if values.ndim != 2 or values.shape[1] != window:
        raise ValueError(f"{prefix} has shape {values.shape}; its window is {window}")
    steps, counts = state[f"{prefix}.steps"], state[f"{prefix}.count"].tolist()
    rings = []
    for row, at in enumerate(state[f"{prefix}.next"].tolist()):
        ring = ScalarRing(window)
        ring.values = array("f", values[row].tolist())
        ring.steps = array("q", steps[row].tolist())
        ring.next = at
        ring.ordered = sorted(ring.values)[: counts[row]]  # the rest is +inf
        rings.append(ring)
    return rings


class ScalarBaseline:
    """Statistics of the healthy samples of a few series; see `Baseline`."""

    def __init__(self, window: int, warm_up: int, patience: int) -> None:
        self.warm_up = warm_up
        self.rings: list[ScalarRing] = []
        self.ready: list[bool] = []
        self._window = window
        self._patience = patience
        self._streaks: list[int] = []
        self._since = 0
        self._check_at = 0  # value of `since` before which nothing can become stale
        self._has_streak = False

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        missing = range(num_series - len(self.rings))
        self.rings += [ScalarRing(self._window) for _ in missing]
        self.ready += [False for _ in missing]
        self._streaks += [0 for _ in missing]
        self._check_at = 0

    def learn(
        self,
        step: int,
        values: Sequence[float],
        known: Sequence[bool],
        flagged: Sequence[bool],
    ) -> None:
        """Learn one sample of every series; NaN where nothing is to be learned."""
        if True in flagged:
            self._spend(known, flagged)
        elif self._has_streak:
            self._streaks = [
                0 if k else streak for k, streak in zip(known, self._streaks, strict=False)
            ]
            self._has_streak = any(self._streaks)
        for row, value in enumerate(values):
            if -INF < value < INF and not flagged[row]:
                self.rings[row].push(step, value)
                if not self.ready[row]:
                    self._check_at = 0
        self._since += 1

    def _spend(self, known: Sequence[bool], flagged: Sequence[bool]) -> None:
        """Count flagged samples in a row; accept the new level of series with too many."""
        self._has_streak = True
        for row, streak in enumerate(self._streaks):
            now = streak + 1 if flagged[row] else 0 if known[row] else streak
            self._streaks[row] = now
            if now >= self._patience:
                self._streaks[row] = 0
                self.rings[row].clear()
                self.ready[row] = False
                self._check_at = 0

    def learned(self) -> tuple[int, int]:
        """Return how many samples the furthest series has, and how many it needs."""
        most = max((len(ring.ordered) for ring in self.rings), default=0)
        return min(most, self.warm_up), self.warm_up

    def is_stale(self) -> bool:
        """Return whether the statistics must be recomputed; the caller then does so."""
        if self._since < self._check_at:
            return False
        counts = [len(ring.ordered) for ring in self.rings]
        if not counts:
            return False
        fewest = min([count for count in counts if count], default=self._window)
        self._check_at = min(REFRESH_EVERY, max(1, fewest // 4))  # grows with the samples
        enough = [count >= self.warm_up for count in counts]
        became_ready = any(e and not r for e, r in zip(enough, self.ready, strict=False))
        if not became_ready and self._since < self._check_at:
            return False
        self.ready = enough
        self._since = 0
        return True in enough

    def rewind(self, step: int) -> None:
        """Forget what was learned after a step."""
        for ring in self.rings:
            ring.rewind(step)
        self._restart()

    def forget(self) -> None:
        """Reset: the job has entered a new phase."""
        for ring in self.rings:
            ring.clear()
        self._restart()

    def _restart(self) -> None:
        self._streaks = [0 for _ in self._streaks]
        self.ready = [False for _ in self.ready]
        self._has_streak = False
        self._check_at = 0

    def state(self, prefix: str) -> State:
        """Return the arrays of a `Baseline`, named with a prefix."""
        rings = rings_state(self.rings, self._window, f"{prefix}ring")
        return {
            **rings,
            f"{prefix}patience": np.array(self._streaks, np.int64),
            f"{prefix}since": np.array([self._since], np.int64),
            f"{prefix}ready": np.array(self.ready, np.bool_),
        }

    def load(self, state: State, prefix: str) -> None:
        """Take over the arrays of a `Baseline`."""
        self.rings = load_rings(state, self._window, f"{prefix}ring")
        self._streaks = state[f"{prefix}patience"].tolist()
        self._since = int(state[f"{prefix}since"][0])
        self.ready = state[f"{prefix}ready"].tolist()
        self._has_streak = any(self._streaks)
        self._check_at = 0
