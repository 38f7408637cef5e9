"""A slow, creeping rise of a few percent, which no threshold on single samples sees."""

from __future__ import annotations

import math

import numpy as np

from stabilizer.rules.detector_specs import Direction, DriftSpec
from stabilizer.rules.detectors.baseline import Baseline
from stabilizer.rules.detectors.interface import (
    BoolArray,
    Detection,
    FloatArray,
    State,
    grown,
    part_of,
)
from stabilizer.rules.detectors.ring import MAD_TO_SIGMA, SampleRing

MEDIAN_TO_MEAN_ERROR = 1.2533
"""Standard error of a median in standard errors of a mean (normal noise): sqrt(pi / 2)."""
_TINY = 1e-12


class Drift:
    """Flags a smoothed value that is clearly worse than the best level of the window.

    The running median keeps single spikes out. The best level is over smoothed values of healthy
    samples only, so that it does not follow a divergence. A rise counts only if it is also
    larger than the noise allows: several standard errors of the smoothed value, the noise taken
    from the differences of successive samples.

    The score is the relative rise (a fall, for direction down).
    """

    def __init__(self, spec: DriftSpec) -> None:
        self.threshold: float | None = spec.above
        self._above = spec.above
        self._sign = -1.0 if spec.direction is Direction.DOWN else 1.0
        self._smooth = spec.smoothing
        self._levels = Baseline(spec.window, spec.warm_up, spec.patience)
        self._recent = SampleRing(spec.smoothing)
        self._steps_between = Baseline(min(spec.window, 64), 8, spec.patience)
        error = MEDIAN_TO_MEAN_ERROR / math.sqrt(spec.smoothing)
        self._noise_factor = spec.noise * error * MAD_TO_SIGMA / math.sqrt(2)
        self._keep = 1.0 - spec.recovered
        self._last = np.empty(0)
        self._noise = np.empty(0)
        self._best = np.empty(0)
        self._peak = np.empty(0)

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        for part in (self._levels, self._recent, self._steps_between):
            part.resize(num_series)
        self._last = grown(self._last, num_series, np.nan)
        self._noise = grown(self._noise, num_series, 0)
        self._best = grown(self._best, num_series, np.inf)
        self._peak = grown(self._peak, num_series, -np.inf)

    def update(self, step: int, values: FloatArray, usable: BoolArray) -> Detection:
        """Judge one sample of every series, then learn the healthy ones."""
        finite = usable & np.isfinite(values)
        values = np.where(finite, self._sign * values, np.nan)
        self._recent.push(step, values, finite)
        is_smooth = finite & (self._recent.count >= self._smooth)
        level = np.where(is_smooth, self._recent.median(), np.nan)
        known = is_smooth & self._levels.ready
        best = np.where(known, self._best, np.nan)
        rise = level - best
        score = rise / np.maximum(np.abs(best), _TINY)
        high = known & (score > self._above)
        if self._above > 0:
            high &= rise > self._noise_factor * self._noise
        self._learn(step, values, level, known, high)
        return Detection(known, high & ~self._is_healing(known, high, level, best), score)

    def _is_healing(
        self, known: BoolArray, high: BoolArray, level: FloatArray, best: FloatArray
    ) -> BoolArray:
        """Return which series have recovered a good part of the way from their peak."""
        if self._keep == 0.0:
            return np.zeros_like(high)
        self._peak[known & ~high] = -np.inf
        np.maximum(self._peak, level, out=self._peak, where=high)
        return high & (level - best < self._keep * (self._peak - best))

    def _learn(
        self,
        step: int,
        values: FloatArray,
        level: FloatArray,
        known: BoolArray,
        flagged: BoolArray,
    ) -> None:
        if self._above <= 0:
            # the rule requires progress: a flagged sample is ordinary, not an anomaly
            flagged = np.zeros_like(flagged)
        self._levels.learn(step, level, known, flagged)
        np.fmin(self._best, level, out=self._best, where=~flagged)
        self._refresh_best()
        jump = np.abs(values - self._last)
        self._steps_between.learn(step, jump, known, flagged)
        if self._steps_between.is_stale():
            noise = self._steps_between.ring.median()
            self._noise = np.where(np.isfinite(noise), noise, 0.0)
        self._last = np.where(np.isfinite(values), values, self._last)

    def _refresh_best(self) -> None:
        """Recompute the best level from time to time: the old one may have left the window."""
        if self._levels.is_stale():
            self._best = self._levels.ring.values.min(axis=1).astype(np.float64)

    def learned(self) -> tuple[int, int] | None:
        """Return how much of the baseline is learned."""
        return self._levels.learned()

    def rewind(self, step: int) -> None:
        """Forget what was learned after a step, and the smoothing, which must not span a jump."""
        self._levels.rewind(step)
        self._steps_between.rewind(step)
        self._refresh_best()
        self._recent.clear(np.ones(len(self._last), np.bool_))
        self._last[:] = np.nan
        self._peak[:] = -np.inf

    def forget(self) -> None:
        """Reset: the job has entered a new phase."""
        self._levels.forget()
        self._steps_between.forget()
        self._recent.clear(np.ones(len(self._last), np.bool_))
        self._last[:] = np.nan
        self._peak[:] = -np.inf

    def state(self) -> State:
        """Return the arrays."""
        arrays = {f"levels.{name}": array for name, array in self._levels.state().items()}
        arrays |= {f"jumps.{name}": array for name, array in self._steps_between.state().items()}
        arrays |= self._recent.state("recent")
        own = {"best": self._best, "peak": self._peak}
        return {**arrays, "last": self._last, "noise": self._noise, **own}

    def load(self, state: State) -> None:
        """Take over the arrays."""
        self._levels.load(part_of(state, "levels."))
        self._steps_between.load(part_of(state, "jumps."))
        self._recent.load(state, "recent")
        self._last = np.array(state["last"], np.float64)
        self._noise = np.array(state["noise"], np.float64)
        self._best = np.array(state["best"], np.float64)
        self._peak = np.array(state["peak"], np.float64)
