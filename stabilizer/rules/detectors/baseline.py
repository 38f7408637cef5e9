"""A learned baseline: a ring of healthy samples and the time of its next statistics."""

from __future__ import annotations

from typing import Final

import numpy as np

from stabilizer.rules.detectors.interface import BoolArray, FloatArray, State, grown
from stabilizer.rules.detectors.ring import SampleRing

REFRESH_EVERY: Final = 16
"""Samples between two computations of the statistics, once there are many: a median of 128 moves
little in 16, and is expensive."""

ROUNDING: Final = 1e-6
"""Smallest spread as a share of the level: samples are kept in float32."""


class Baseline:
    """Statistics of the healthy samples of every series.

    The owner computes them in `refresh` when `is_stale` says so, into arrays that it keeps.

    Args:
        window: Samples remembered.
        warm_up: Samples before a series is ready.
        patience: Flagged samples in a row after which a series restarts its baseline.
    """

    def __init__(self, window: int, warm_up: int, patience: int) -> None:
        self.ring = SampleRing(window)
        self.warm_up = warm_up
        self._patience = Patience(patience)
        self._since = np.zeros(1, np.int64)
        self.ready = np.empty(0, np.bool_)
        self._all_ready = False
        self._check_at = 0  # value of `since` before which nothing can become stale

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        self._all_ready, self._check_at = False, 0
        self.ring.resize(num_series)
        self._patience.resize(num_series)
        self.ready = grown(self.ready, num_series, 0)

    def learn(self, step: int, values: FloatArray, known: BoolArray, flagged: BoolArray) -> None:
        """Learn one sample of every series.

        Args:
            step: Completed optimizer steps.
            values: Shape [N]; finite where learnable.
            known: Shape [N]; it was judged. Samples that are neither known nor flagged but
                finite are learned as well: `values` is NaN where nothing is to be learned.
            flagged: Shape [N]; not learned.
        """
        learnable = np.isfinite(values)
        if flagged.any():
            learnable &= ~flagged
            self._spend_patience(known, flagged)
        else:
            self._patience.calm(known)
        self.ring.push(step, values, learnable)
        self._since += 1

    def _spend_patience(self, known: BoolArray, flagged: BoolArray) -> None:
        accepted = self._patience.spend(known, flagged)
        if accepted is not None:
            self.ring.clear(accepted)
            self.ready[accepted] = False
            self._all_ready, self._check_at = False, 0

    def learned(self) -> tuple[int, int]:
        """Return how many samples the furthest series has, and how many it needs."""
        return min(int(self.ring.count.max(initial=0)), self.warm_up), self.warm_up

    def is_stale(self) -> bool:
        """Return whether the statistics must be recomputed; the caller then does so.

        Often while there are few samples, then every `REFRESH_EVERY` samples.
        """
        since = int(self._since[0])
        if self._all_ready and since < self._check_at:
            return False
        count = self.ring.count
        if not count.size:
            return False
        fewest = int(count[count > 0].min(initial=self.ring.window))
        self._check_at = min(REFRESH_EVERY, max(1, fewest // 4))  # grows with the samples
        enough = count >= self.warm_up
        became_ready = (enough & ~self.ready).any()
        if not became_ready and since < self._check_at:
            return False
        self.ready = enough
        self._all_ready = bool(enough.all())
        self._since[:] = 0
        return bool(enough.any())

    def rewind(self, step: int) -> None:
        """Forget what was learned after a step."""
        self.ring.rewind(step)
        self._patience.clear()
        self._invalidate()

    def forget(self) -> None:
        """Reset: the job has entered a new phase."""
        self.ring.clear(np.ones(len(self.ready), np.bool_))
        self._patience.clear()
        self._invalidate()

    def _invalidate(self) -> None:
        self.ready[:] = False
        self._all_ready, self._check_at = False, 0

    def state(self) -> State:
        """Return the arrays."""
        own = {"since": self._since, "ready": self.ready}
        return {**self.ring.state("ring"), **self._patience.state(), **own}

    def load(self, state: State) -> None:
        """Take over the arrays."""
        self.ring.load(state, "ring")
        self._patience.load(state)
        self._since = np.array(state["since"], np.int64)
        self.ready = np.array(state["ready"], np.bool_)
        self._all_ready, self._check_at = bool(self.ready.all()), 0


class Patience:
    """Counts the flagged samples in a row of every series.

    After `limit` of them the new level is accepted: it is no longer an anomaly. Otherwise a
    detector that learns no flagged sample would flag a legitimate new level forever. A phase change
    that the job announces is accepted at once, by `Detector.forget`.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._streak = np.empty(0, np.int64)
        self._any = False  # whether a series has a count

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        self._streak = grown(self._streak, num_series, 0)

    def calm(self, known: BoolArray) -> None:
        """Count a detection without a flag."""
        if self._any:
            self._streak[known] = 0
            self._any = bool(self._streak.any())

    def spend(self, known: BoolArray, flagged: BoolArray) -> BoolArray | None:
        """Count a detection with flags; return the series whose new level is now accepted."""
        streak = self._streak
        self._any = True
        streak[known & ~flagged] = 0
        streak[flagged] += 1
        accepted = streak >= self.limit
        if not accepted.any():
            return None
        streak[accepted] = 0
        return accepted

    def clear(self) -> None:
        """Reset the counts."""
        self._streak[:] = 0
        self._any = False

    def state(self) -> State:
        """Return the counts."""
        return {"patience": self._streak}

    def load(self, state: State) -> None:
        """Take over the counts."""
        self._streak = np.array(state["patience"], np.int64)
        self._any = bool(self._streak.any())
