"""A slow, creeping rise of a few percent, which no threshold on single samples sees."""

from __future__ import annotations

import math

import numpy as np

from stabilizer.rules.detectors.baseline import Baseline
from stabilizer.rules.detectors.interface import BoolArray, FloatArray, State, Verdict
from stabilizer.rules.detectors.ring import MAD_TO_SIGMA, SampleRing
from stabilizer.rules.spec import Direction, DriftSpec

MEDIAN_TO_MEAN_ERROR = 1.2533
"""Standard error of a median in standard errors of a mean (normal noise): sqrt(pi / 2)."""
_TINY = 1e-12


class Drift:
    """Flags a smoothed value that is clearly worse than the best level of the window.

    The running median keeps single spikes out. The best level is over smoothed values of healthy
    samples only, so that it stays put while a divergence goes on. A rise counts only if it is also
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
        self._last = np.empty(0)
        self._noise = np.empty(0)

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        missing = max(0, num_series - len(self._last))
        for part in (self._levels, self._recent, self._steps_between):
            part.resize(num_series)
        self._last = np.concatenate([self._last, np.full(missing, np.nan)])
        self._noise = np.concatenate([self._noise, np.zeros(missing)])

    def update(self, step: int, values: FloatArray, usable: BoolArray) -> Verdict:
        """Judge one sample of every series, then learn the healthy ones."""
        finite = usable & np.isfinite(values)
        values = np.where(finite, self._sign * values, np.nan)
        self._recent.push(step, values, finite)
        is_smooth = finite & (self._recent.count >= self._smooth)
        level = np.where(is_smooth, self._recent.median(), np.nan)
        ring = self._levels.ring
        known = is_smooth & (ring.count >= self._levels.warm_up)
        best = np.where(known, ring.values.min(axis=1), np.nan).astype(np.float64)
        rise = level - best
        score = rise / np.maximum(np.abs(best), _TINY)
        flagged = known & (score > self._above)
        if self._above > 0:
            flagged &= rise > self._noise_factor * self._noise
        self._learn(step, values, level, known, flagged)
        return Verdict(known, flagged, score)

    def _learn(
        self,
        step: int,
        values: FloatArray,
        level: FloatArray,
        known: BoolArray,
        flagged: BoolArray,
    ) -> None:
        if self._above <= 0:
            # it asks for progress: what is flagged is an ordinary sample, not an anomaly
            flagged = np.zeros_like(flagged)
        self._levels.learn(step, level, known, flagged)
        jump = np.abs(values - self._last)
        self._steps_between.learn(step, jump, known, flagged)
        if self._steps_between.is_stale():
            noise = self._steps_between.ring.median()
            self._noise = np.where(np.isfinite(noise), noise, 0.0)
        self._last = np.where(np.isfinite(values), values, self._last)

    def rewind(self, step: int) -> None:
        """Forget what was learned after a step, and the smoothing, which must not span a jump."""
        self._levels.rewind(step)
        self._steps_between.rewind(step)
        self._recent.clear(np.ones(len(self._last), np.bool_))
        self._last[:] = np.nan

    def forget(self) -> None:
        """Begin anew."""
        self._levels.forget()
        self._steps_between.forget()
        self._recent.clear(np.ones(len(self._last), np.bool_))
        self._last[:] = np.nan

    def state(self) -> State:
        """Return the arrays."""
        arrays = {f"levels.{name}": array for name, array in self._levels.state().items()}
        arrays |= {f"jumps.{name}": array for name, array in self._steps_between.state().items()}
        arrays |= self._recent.state("recent")
        return {**arrays, "last": self._last, "noise": self._noise}

    def load(self, state: State) -> None:
        """Take over the arrays."""
        self._levels.load(_part(state, "levels."))
        self._steps_between.load(_part(state, "jumps."))
        self._recent.load(state, "recent")
        self._last = np.array(state["last"], np.float64)
        self._noise = np.array(state["noise"], np.float64)


def _part(state: State, prefix: str) -> State:
    return {
        name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)
    }
