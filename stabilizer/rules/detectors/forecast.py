"""A bound that the series will have crossed in so many steps if it goes on as of late."""

from __future__ import annotations

from typing import Final

import numpy as np

from stabilizer.rules.detector_specs import ForecastSpec, Scale
from stabilizer.rules.detectors.baseline import ROUNDING
from stabilizer.rules.detectors.blocks import BlockMeans, median_of
from stabilizer.rules.detectors.interface import BoolArray, Detection, FloatArray, State, unknown
from stabilizer.rules.detectors.ring import MAD_TO_SIGMA

THIRD: Final = 4
"""Blocks of which one point of the line is the median: one spike spoils one block."""
LARGEST: Final = 700.0
"""Of an exponent: its exponential is still finite."""


class Forecast:
    """Flags series whose line crosses a bound within so many steps, or that are beyond it.

    The line goes through the medians of the thirds of the window, so that no single block moves
    it, and counts only if it is clear of the scatter about it. A curve whose last third is clearly
    less steep than the one before goes on flattening at the same rate; one that grows steeper is
    continued as a line. The score is the value expected after `within` steps.

    Source:
        The resistant line of Tukey, Exploratory Data Analysis (1977).
    """

    def __init__(self, spec: ForecastSpec) -> None:
        bound = spec.above if spec.above is not None else spec.below
        self.threshold: float | None = bound
        self._spec = spec
        self._is_log = spec.scale is Scale.LOG
        self._blocks = BlockMeans(max(1, spec.window // (3 * THIRD)), 3 * THIRD)
        self._nothing = unknown(0)

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        self._blocks.resize(num_series)
        self._nothing = unknown(num_series)

    def update(self, step: int, values: FloatArray, usable: BoolArray) -> Detection:
        """Add one sample of every series; judge when a block is complete."""
        if not usable.any():
            return self._nothing
        finite = usable & np.isfinite(values)
        if self._is_log:
            finite &= values > 0
            values = np.log(values, where=finite, out=np.zeros(len(values)))
        fresh = self._blocks.add(step, values, finite)
        if fresh is None:
            return self._nothing
        known = fresh & self._blocks.is_full
        if not known.any():
            return self._nothing
        expected = self._expected(step)
        if self._is_log:
            expected = np.exp(np.minimum(expected, LARGEST))
        score = np.where(known, expected, np.nan)
        spec = self._spec
        flagged = score > spec.above if spec.above is not None else score < (spec.below or 0.0)
        return Detection(known, known & flagged, score)

    def _expected(self, step: int) -> FloatArray:
        """Return the levels that the series will have after `within` steps."""
        means, ends = self._blocks.means, self._blocks.ends
        level, at = (median_of(a.reshape(-1, 3, THIRD)) for a in (means, ends))
        slope = (level[:, 2] - level[:, 0]) / (at[:, 2] - at[:, 0])
        center = (level - slope[:, None] * at).mean(axis=1)
        scatter = np.abs(means - center[:, None] - slope[:, None] * ends)
        spread = np.maximum(MAD_TO_SIGMA * median_of(scatter), ROUNDING * np.abs(level[:, 2]))
        rises = np.diff(level, axis=1)
        is_clear = np.abs(rises.sum(axis=1)) > self._spec.noise * spread
        is_clear &= rises[:, 0] * rises[:, 1] > 0
        width = at[:, 2] - at[:, 1]
        thirds = (step + self._spec.within - at[:, 2]) / width
        kept = (np.abs(rises[:, 1]) + spread) / np.abs(rises[:, 0])  # of the rise, third by third
        flattening = rises[:, 1] * kept * (1 - kept**thirds) / (1 - kept)
        ahead = np.where(kept < 1.0, flattening, slope * width * thirds)
        return level[:, 2] + np.where(is_clear, ahead, 0.0)

    def learned(self) -> tuple[int, int] | None:
        """Return how many blocks are learned, and how many it needs."""
        return self._blocks.learned()

    def rewind(self, step: int) -> None:
        """Forget what was learned after a step."""
        self._blocks.rewind(step)

    def forget(self) -> None:
        """Reset: the job has entered a new phase."""
        self._blocks.forget()

    def state(self) -> State:
        """Return the arrays."""
        return self._blocks.state()

    def load(self, state: State) -> None:
        """Take over the arrays."""
        self._blocks.load(state)
        self._nothing = unknown(len(self._blocks.means))
