"""A rise that is large for the run's own noise and does not heal."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from stabilizer.rules.detector_specs import Direction, RiseSpec, Scale
from stabilizer.rules.detectors.baseline import Baseline
from stabilizer.rules.detectors.interface import (
    BoolArray,
    Detection,
    FloatArray,
    State,
    grown,
    part_of,
    unknown,
)

BLOCKS: Final = 4
"""Blocks of which a level is the median: one spike spoils one block."""
FEWEST_BLOCKS: Final = 3
LAG: Final = BLOCKS
"""Levels between those whose second difference is noise: they share no sample."""
SECOND: Final = math.sqrt(3.0)
"""Spread of a second difference in that of a first one, for independent samples."""
CALM_SHARE: Final = 0.9
NORMAL_QUANTILE: Final = 1.645
"""The quantile of an absolute normal deviate at `CALM_SHARE`."""
BEST_SHARE: Final = 0.25
"""The reference is the lower quartile: it follows progress, and no single lucky level."""
PROGRESS_SHARE: Final = 0.1
"""Of the way that the series has come; the scale of a loss near zero."""
SUSPECT: Final = 0.5
"""A level is not learned from this share of the threshold on."""
RETURN: Final = math.log(10.0)
"""A rise has returned when a tenth of it is left."""
FALL: Final = 3.0
"""Units of the noise below its peak from which a rise can be healing."""
TINY: Final = 1e-12


class Rise:
    """Flags levels above the recent reference, measured in the noise of the levels themselves.

    Samples are averaged in blocks of steps, so that a series measured every step and one measured
    every tenth have the same levels. A level is the median of the last blocks. The noise is the
    spread of second differences of levels over a short time: it contains the wander that the order
    of the data causes, and no steady progress. Its floor is a share of the level, or of the way
    that the series has come: a loss near zero, below zero, or with a steep start is judged like
    any other. A series that has been constant has no noise, and is not judged.

    A rise that falls fast enough to be gone within `heal_within` steps, both since its peak and of
    late, is healing and not flagged. The score is the rise in units of the noise.
    """

    def __init__(self, spec: RiseSpec) -> None:
        self.threshold: float | None = spec.above
        self._spec = spec
        self._sign = -1.0 if spec.direction is Direction.DOWN else 1.0
        self._is_log = spec.scale is Scale.LOG
        self._block = max(1, spec.smooth // BLOCKS)
        self._length = self._block  # of the present block, longer where samples are rarer
        entries = max(4 * LAG, spec.window // self._block)
        self._levels = Baseline(entries, min(spec.ready, entries), spec.patience // self._block)
        self._changes = Baseline(entries, LAG, spec.patience // self._block)
        self._means = np.empty((0, BLOCKS))  # of the last blocks, oldest first; NaN: none
        self._past = np.empty((0, 2 * LAG))  # the last levels that are not suspect, likewise
        self._heights = np.empty((0, LAG))  # of the last rises that are suspect, likewise
        self._clock = np.full(2, -1, np.int64)  # first step of the open block, last step
        self._nothing = unknown(0)
        self._sum = np.empty(0)
        self._count = np.empty(0)
        self._reference = np.empty(0)
        self._noise = np.empty(0)
        self._top = np.empty(0)
        self._peak = np.empty(0)
        self._peak_step = np.empty(0)

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        self._levels.resize(num_series)
        self._changes.resize(num_series)
        self._nothing = unknown(num_series)
        missing = num_series - len(self._sum)
        self._means = np.concatenate([self._means, np.full((missing, BLOCKS), np.nan)])
        self._past = np.concatenate([self._past, np.full((missing, 2 * LAG), np.nan)])
        self._heights = np.concatenate([self._heights, np.full((missing, LAG), np.nan)])
        self._sum = grown(self._sum, num_series, 0)
        self._count = grown(self._count, num_series, 0)
        self._reference = grown(self._reference, num_series, np.nan)
        self._noise = grown(self._noise, num_series, np.nan)
        self._top = grown(self._top, num_series, -np.inf)
        self._peak = grown(self._peak, num_series, -np.inf)
        self._peak_step = grown(self._peak_step, num_series, -1)

    def update(self, step: int, values: FloatArray, usable: BoolArray) -> Detection:
        """Add one sample of every series; judge the levels when a block is complete."""
        if not usable.any():
            return self._nothing
        finite = np.isfinite(values)
        finite &= usable
        if self._is_log:
            finite &= values > 0
            values = np.log(values, where=finite, out=np.zeros(len(values)))
        np.add(self._sum, values, out=self._sum, where=finite)
        self._count += finite
        first, last = self._clock.tolist()
        first = step if first < 0 else first
        gap = step - last if last >= 0 else 1
        if step + gap - first < self._block:
            self._clock[:] = first, step
            return self._nothing
        self._clock[:] = -1, step
        self._length = max(self._block, gap)
        return self._close(step)

    def _close(self, step: int) -> Detection:
        fresh = self._count > 0
        means = self._sum / np.maximum(self._count, 1)
        if self._sign < 0:
            np.negative(means, out=means)
        self._sum.fill(0)
        self._count.fill(0)
        rows = slice(None) if fresh.all() else fresh
        self._means[rows, :-1] = self._means[rows, 1:]
        self._means[rows, -1] = means[rows]
        ordered = np.sort(self._means, axis=1)  # NaN sorts last
        level = np.where(
            np.isnan(ordered[:, -1]), ordered[:, 1], 0.5 * (ordered[:, 1] + ordered[:, 2])
        )
        has_level = fresh & ~np.isnan(ordered[:, FEWEST_BLOCKS - 1])
        level[~has_level] = np.nan
        return self._judge(step, level, has_level)

    def _judge(self, step: int, level: FloatArray, has_level: BoolArray) -> Detection:
        is_ready = self._levels.ready & self._changes.ready & (self._noise > 0)
        known = has_level & is_ready
        rise = level - self._reference
        scale = self._scale()
        noise = np.maximum(self._noise, np.maximum(self._spec.floor * scale, TINY))
        score = np.where(known, rise / noise, np.nan)
        suspect = known & (score > SUSPECT * self._spec.above)
        high = known & (score > self._spec.above) & (rise > self._spec.least * scale)
        if self._spec.direction is Direction.BOTH:
            low = -score
            suspect |= known & (low > SUSPECT * self._spec.above)
            high |= known & (low > self._spec.above) & (-rise > self._spec.least * scale)
        if suspect.any():
            flagged = high & ~self._is_healing(step, suspect, np.abs(rise), noise)
        else:
            flagged = high
            self._peak.fill(-np.inf)
            self._heights.fill(np.nan)
        self._learn(step, level, known, suspect)
        return Detection(known, flagged, score)

    def _scale(self) -> FloatArray:
        if self._is_log:
            return np.ones(len(self._reference))
        return np.maximum(
            np.abs(self._reference), PROGRESS_SHARE * np.maximum(self._top - self._reference, 0.0)
        )

    def _is_healing(
        self, step: int, suspect: BoolArray, rise: FloatArray, noise: FloatArray
    ) -> BoolArray:
        """Return which rises are soon gone if they go on falling as since their peak."""
        self._peak[~suspect] = -np.inf
        higher = suspect & (rise >= self._peak)
        self._peak[higher] = rise[higher]
        self._peak_step[higher] = step
        left = np.clip(rise / np.where(suspect, self._peak, 1.0), 0.0, 1.0)
        decay = -np.log(np.maximum(left, TINY))
        elapsed = step - self._peak_step
        is_falling = suspect & (self._peak - rise > FALL * noise)
        is_falling &= elapsed * RETURN < decay * self._spec.heal_within
        fall = self._heights[:, 0] - rise  # over the last LAG blocks
        is_level = fall * self._spec.heal_within < RETURN * LAG * self._length * rise
        self._heights[:, :-1] = self._heights[:, 1:]
        self._heights[:, -1] = np.where(suspect, rise, np.nan)
        return is_falling & ~is_level

    def _learn(self, step: int, level: FloatArray, known: BoolArray, suspect: BoolArray) -> None:
        self._levels.learn(step, level, known, suspect)
        change = np.abs(level - 2.0 * self._past[:, LAG] + self._past[:, 0]) / SECOND
        self._changes.learn(step, change, known, suspect)
        calm = np.where(suspect, np.nan, level)
        self._past[:, :-1] = self._past[:, 1:]
        self._past[:, -1] = calm
        np.fmax(self._top, calm, out=self._top)
        if self._levels.is_stale():
            self._reference = self._levels.ring.quantile(BEST_SHARE)
        if self._changes.is_stale():
            self._noise = self._changes.ring.quantile(CALM_SHARE) / NORMAL_QUANTILE

    def learned(self) -> tuple[int, int] | None:
        """Return how many levels and changes of levels are learned, and how many it needs."""
        (levels, some), (changes, more) = self._levels.learned(), self._changes.learned()
        return levels + changes, some + more

    def rewind(self, step: int) -> None:
        """Forget what was learned after a step, and the smoothing, which must not span a jump."""
        self._levels.rewind(step)
        self._changes.rewind(step)
        self._restart()

    def forget(self) -> None:
        """Reset: the job has entered a new phase."""
        self._levels.forget()
        self._changes.forget()
        self._top[:] = -np.inf
        self._restart()

    def _restart(self) -> None:
        self._means.fill(np.nan)
        self._past.fill(np.nan)
        self._heights.fill(np.nan)
        self._clock[:] = -1
        self._sum[:] = 0
        self._count[:] = 0
        self._peak[:] = -np.inf

    def state(self) -> State:
        """Return the arrays."""
        arrays = {f"levels.{name}": array for name, array in self._levels.state().items()}
        arrays |= {f"changes.{name}": array for name, array in self._changes.state().items()}
        return arrays | {name: getattr(self, f"_{name}") for name in OWN} | {"clock": self._clock}

    def load(self, state: State) -> None:
        """Take over the arrays."""
        self._levels.load(part_of(state, "levels."))
        self._changes.load(part_of(state, "changes."))
        for name in OWN:
            setattr(self, f"_{name}", np.array(state[name], np.float64))
        self._clock = np.array(state["clock"], np.int64)
        self._nothing = unknown(len(self._sum))


OWN: Final = (
    "means",
    "past",
    "heights",
    "sum",
    "count",
    "reference",
    "noise",
    "top",
    "peak",
    "peak_step",
)
