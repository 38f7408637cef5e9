"""A sudden move up or down, such as the fall of z-loss when the logits collapse."""

from __future__ import annotations

import math

import numpy as np

from stabilizer.rules.detector_specs import Direction, SpikeSpec
from stabilizer.rules.detectors.baseline import ROUNDING, Baseline
from stabilizer.rules.detectors.interface import (
    BoolArray,
    Detection,
    FloatArray,
    State,
    grown,
    part_of,
)
from stabilizer.rules.detectors.ring import MAD_TO_SIGMA

TINY = 1e-12


class Spike:
    """Flags a sample that is far from the last few, in units of the series' own steps.

    The center is the median of a short window. The spread comes from the differences of successive
    samples, so that a trend within the window widens nothing. The score is signed.
    """

    def __init__(self, spec: SpikeSpec) -> None:
        self.threshold: float | None = spec.above
        self._spec = spec
        self._above = spec.above
        self._levels = Baseline(spec.window, spec.warm_up, spec.patience)
        self._jumps = Baseline(spec.window, spec.warm_up, spec.patience)
        self._last = np.empty(0)
        self._center = np.empty(0)
        self._spread = np.empty(0)

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        self._levels.resize(num_series)
        self._jumps.resize(num_series)
        self._last = grown(self._last, num_series, np.nan)
        self._center = grown(self._center, num_series, np.nan)
        self._spread = grown(self._spread, num_series, np.nan)

    def update(self, step: int, values: FloatArray, usable: BoolArray) -> Detection:
        """Judge one sample of every series, then learn the healthy ones."""
        finite = usable & np.isfinite(values)
        values = np.where(finite, values, np.nan)
        known = finite & self._levels.ready & self._jumps.ready
        score = np.where(known, (values - self._center) / self._spread, np.nan)
        flagged = known & (self._oriented(score) > self._above)
        jumps = np.abs(values - self._last)
        self._levels.learn(step, values, known, flagged)
        self._jumps.learn(step, jumps, known, flagged)
        self._last = np.where(finite & ~flagged, values, self._last)
        self._refresh()
        return Detection(known, flagged, score)

    def _oriented(self, score: FloatArray) -> FloatArray:
        if self._spec.direction is Direction.BOTH:
            return np.abs(score)
        return -score if self._spec.direction is Direction.DOWN else score

    def _refresh(self) -> None:
        has_levels, has_jumps = self._levels.is_stale(), self._jumps.is_stale()
        if not has_levels and not has_jumps:
            return
        if has_levels:
            self._center = self._levels.ring.median()
        if has_jumps:
            self._spread = self._jumps.ring.median() * (MAD_TO_SIGMA / math.sqrt(2))
        floor = max(self._spec.relative_floor, ROUNDING) * np.abs(self._center)
        self._spread = np.maximum(
            self._spread, np.maximum(floor, max(self._spec.absolute_floor, TINY))
        )

    def learned(self) -> tuple[int, int] | None:
        """Return how much of the baseline is learned."""
        return self._levels.learned()

    def rewind(self, step: int) -> None:
        """Forget what was learned after a step."""
        self._levels.rewind(step)
        self._jumps.rewind(step)
        self._last[:] = np.nan
        self._refresh()

    def forget(self) -> None:
        """Reset: the job has entered a new phase."""
        self._levels.forget()
        self._jumps.forget()
        self._last[:] = np.nan

    def state(self) -> State:
        """Return the arrays."""
        arrays = {f"levels.{name}": array for name, array in self._levels.state().items()}
        arrays |= {f"jumps.{name}": array for name, array in self._jumps.state().items()}
        return {**arrays, "last": self._last, "center": self._center, "spread": self._spread}

    def load(self, state: State) -> None:
        """Take over the arrays."""
        self._levels.load(part_of(state, "levels."))
        self._jumps.load(part_of(state, "jumps."))
        for name in ("last", "center", "spread"):
            setattr(self, f"_{name}", np.array(state[name], np.float64))
