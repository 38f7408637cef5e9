"""Distance from the median of the last healthy samples, in scaled median absolute deviations."""

from __future__ import annotations

import numpy as np

from stabilizer.rules.detector_specs import RobustZscoreSpec, Scale
from stabilizer.rules.detectors.baseline import ROUNDING, Baseline
from stabilizer.rules.detectors.interface import BoolArray, Detection, FloatArray, State, grown


class RobustZscore:
    """Flags samples far above the median of the window; far from it, if two-sided.

    On a log scale samples must be positive; others are neither judged nor learned.

    Source:
        Iglewicz and Hoaglin (1993); the factor 1.4826 makes the median absolute deviation
        comparable to a standard deviation.
    """

    def __init__(self, spec: RobustZscoreSpec) -> None:
        self.threshold: float | None = spec.above
        self._spec = spec
        self._above = spec.above
        self._is_log = spec.scale is Scale.LOG
        self._baseline = Baseline(spec.window, spec.warm_up, spec.patience)
        self._center = np.empty(0)
        self._spread = np.empty(0)

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        self._baseline.resize(num_series)
        self._center = grown(self._center, num_series, np.nan)
        self._spread = grown(self._spread, num_series, np.nan)

    def update(self, step: int, values: FloatArray, usable: BoolArray) -> Detection:
        """Judge one sample of every series, then learn the healthy ones."""
        finite = usable & np.isfinite(values)
        if self._is_log:
            finite &= values > 0
            scaled = np.log(np.where(finite, values, np.nan))
        else:
            scaled = np.where(finite, values, np.nan)
        known = finite & self._baseline.ready
        score = np.where(known, (scaled - self._center) / self._spread, np.nan)
        distance = np.abs(score) if self._spec.two_sided else score
        flagged = known & (distance > self._above)
        self._baseline.learn(step, scaled, known, flagged)
        self._refresh()
        return Detection(known, flagged, score)

    def _refresh(self) -> None:
        if not self._baseline.is_stale():
            return
        ring = self._baseline.ring
        self._center = ring.median()
        share = max(self._spec.relative_floor, ROUNDING)
        relative = share if self._is_log else share * np.abs(self._center)
        floor = np.maximum(relative, max(self._spec.absolute_floor, TINY))
        self._spread = np.maximum(ring.spread(self._center), floor)

    def learned(self) -> tuple[int, int] | None:
        """Return how much of the baseline is learned."""
        return self._baseline.learned()

    def rewind(self, step: int) -> None:
        """Forget what was learned after a step."""
        self._baseline.rewind(step)
        self._refresh()

    def forget(self) -> None:
        """Reset: the job has entered a new phase."""
        self._baseline.forget()

    def state(self) -> State:
        """Return the arrays."""
        return {**self._baseline.state(), "center": self._center, "spread": self._spread}

    def load(self, state: State) -> None:
        """Take over the arrays."""
        self._baseline.load(state)
        self._center = np.array(state["center"], np.float64)
        self._spread = np.array(state["spread"], np.float64)


TINY = 1e-12
"""Keeps the division defined for a series of zeros."""
