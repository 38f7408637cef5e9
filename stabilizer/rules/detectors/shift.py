"""A step to a new level that stays: a change point, and no rise that is growing."""

from __future__ import annotations

from typing import Final

import numpy as np

from stabilizer.rules.detector_specs import Direction, Scale, ShiftSpec
from stabilizer.rules.detectors.blocks import BlockMeans, median_of
from stabilizer.rules.detectors.interface import (
    BoolArray,
    Detection,
    FloatArray,
    State,
    grown,
    part_of,
    unknown,
)
from stabilizer.rules.detectors.ring import MAD_TO_SIGMA

HELD: Final = 4
"""Blocks of the new level."""
BETWEEN: Final = 2
"""Blocks between the two levels: the step itself, and a second chance to see it."""
EDGE: Final = 2
"""Blocks before the step that must be at the old level: a rise that has begun is no step."""
SCATTER: Final = 3.0
"""Units of the noise by which the new level may scatter."""
FEWEST: Final = 8
MOST: Final = 64
"""Blocks of the old level."""
GONE: Final = 0.5
GROWN: Final = 1.5
"""Shares of a step below and above which the level is no longer the one stepped to."""
_TINY: Final = 1e-12
_OWN: Final = ("base", "jump", "noise", "since")


class Shift:
    """Flags series whose level has stepped, and has been flat for `hold` steps since.

    The level before is also continued as a line, and the smaller of the two steps counts: neither
    the end of a fast fall nor a steady rise is a step. A series stays flagged for `keep` steps
    while it stays near the new level; the level is then accepted. The score is the step in units
    of the noise of the level before.
    """

    def __init__(self, spec: ShiftSpec) -> None:
        self.threshold: float | None = spec.above
        self._spec = spec
        self._is_log = spec.scale is Scale.LOG
        length = max(1, spec.hold // HELD)
        self._before = min(max(FEWEST, spec.window // length), MOST)
        self._blocks = BlockMeans(length, self._before + BETWEEN + HELD)
        self._nothing = unknown(0)
        self._base = np.empty(0)  # level before the step; NaN: there was none
        self._jump = np.empty(0)
        self._noise = np.empty(0)
        self._since = np.empty(0)

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        self._blocks.resize(num_series)
        self._nothing = unknown(num_series)
        for name in _OWN:
            setattr(self, f"_{name}", grown(getattr(self, f"_{name}"), num_series, np.nan))

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
        level = median_of(self._blocks.means[:, -HELD:])
        score = self._find(step, level, known)
        has_stepped = ~np.isnan(self._base)
        rise = (level - self._base) * np.sign(self._jump)
        stays = (rise > GONE * np.abs(self._jump)) & (rise < GROWN * np.abs(self._jump))
        stays &= step - self._since <= self._spec.patience
        for name in _OWN:
            getattr(self, f"_{name}")[known & has_stepped & ~stays] = np.nan
        flagged = known & has_stepped & stays
        score = np.where(flagged, (level - self._base) / self._noise, score)
        return Detection(known, flagged, np.where(known, score, np.nan))

    def _find(self, step: int, level: FloatArray, known: BoolArray) -> FloatArray:
        """Note the series that have stepped; return their steps in units of the noise."""
        spec = self._spec
        base, predicted, noise = self._old_level()
        plain, beyond_trend = level - base, level - predicted
        jump = np.where(np.abs(beyond_trend) < np.abs(plain), beyond_trend, plain)
        jump = np.where(plain * beyond_trend > 0, jump, 0.0)
        score = jump / noise
        size, oriented = np.abs(jump), score
        if spec.direction is Direction.BOTH:
            oriented = np.abs(score)
        elif spec.direction is Direction.DOWN:
            oriented = -score
        scale = 1.0 if self._is_log else np.abs(base)
        found = known & np.isnan(self._base) & (oriented > spec.above)
        found &= (size > spec.least * scale) & self._is_flat(base, spec.flat * size, noise)
        for name, values in zip(_OWN, (base, jump, noise, np.full(len(base), step)), strict=True):
            np.copyto(getattr(self, f"_{name}"), values, where=found)
        return score

    def _is_flat(self, base: FloatArray, most: FloatArray, noise: FloatArray) -> BoolArray:
        """Return where both levels are flat, so that all movement lies between them."""
        new = self._blocks.means[:, -HELD:]
        edge = self._blocks.means[:, self._before - EDGE : self._before].mean(axis=1)
        movement = new[:, HELD // 2 :].mean(axis=1) - new[:, : HELD // 2].mean(axis=1)
        is_flat: BoolArray = np.abs(movement) <= most
        is_flat &= np.abs(edge - base) <= most + noise
        is_flat &= np.ptp(new, axis=1) <= most + SCATTER * noise
        return is_flat

    def _old_level(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the level before, what it would be by now if its trend had gone on, its noise."""
        half = self._before // 2
        means, ends = self._blocks.means[:, : self._before], self._blocks.ends
        early, late = median_of(means[:, :half]), median_of(means[:, half:])
        at_early, at_late = ends[:, :half].mean(axis=1), ends[:, half : self._before].mean(axis=1)
        slope = (late - early) / (at_late - at_early)
        predicted = late + slope * (ends[:, -HELD:].mean(axis=1) - at_late)
        residuals = (
            means - late[:, None] - slope[:, None] * (ends[:, : self._before] - at_late[:, None])
        )
        noise = MAD_TO_SIGMA * median_of(np.abs(residuals))
        floor = self._spec.floor * (1.0 if self._is_log else np.abs(late))
        return late, predicted, np.maximum(noise, np.maximum(floor, _TINY))

    def learned(self) -> tuple[int, int] | None:
        """Return how many blocks are learned, and how many it needs."""
        return self._blocks.learned()

    def rewind(self, step: int) -> None:
        """Forget what was learned after a step."""
        self._blocks.rewind(step)
        later = self._since > step
        for name in _OWN:
            getattr(self, f"_{name}")[later] = np.nan

    def forget(self) -> None:
        """Reset: the job has entered a new phase."""
        self._blocks.forget()
        for name in _OWN:
            getattr(self, f"_{name}").fill(np.nan)

    def state(self) -> State:
        """Return the arrays."""
        own = {name: getattr(self, f"_{name}") for name in _OWN}
        return {**{f"blocks.{n}": a for n, a in self._blocks.state().items()}, **own}

    def load(self, state: State) -> None:
        """Take over the arrays."""
        self._blocks.load(part_of(state, "blocks."))
        for name in _OWN:
            setattr(self, f"_{name}", np.array(state[name], np.float64))
        self._nothing = unknown(len(self._base))
