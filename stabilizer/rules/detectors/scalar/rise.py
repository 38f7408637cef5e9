"""A rise that is large for the run's own noise and does not heal, in floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from stabilizer.rules.detector_specs import Direction, RiseSpec, Scale
from stabilizer.rules.detectors.interface import State
from stabilizer.rules.detectors.rise import (
    BEST_SHARE,
    BLOCKS,
    CALM_SHARE,
    FALL,
    FEWEST_BLOCKS,
    LAG,
    NORMAL_QUANTILE,
    OWN,
    PROGRESS_SHARE,
    RETURN,
    SECOND,
    SUSPECT,
    TINY,
)
from stabilizer.rules.detectors.scalar.history import ScalarBaseline
from stabilizer.rules.detectors.scalar.interface import Judgement, ScalarDetector, larger

_NAN: Final = math.nan
_NOTHING: Final[tuple[Judgement, ...]] = ()


def _log(value: float) -> float:
    """Return the logarithm as numpy computes it; that of `math` may differ in the last bit."""
    return float(np.log(value))


class _Lane:
    """The state of one series; see `Rise`."""

    def __init__(self) -> None:
        self.sum = 0.0
        self.count = 0
        self.blocks: list[float] = []  # means of the last blocks
        self.past = [_NAN] * (2 * LAG)
        self.heights = [_NAN] * LAG
        self.reference = _NAN
        self.noise = _NAN
        self.top = -math.inf
        self.peak = -math.inf
        self.peak_step = -1.0
        # of the present block
        self.level = _NAN
        self.rise = _NAN
        self.score = _NAN
        self.unit = _NAN
        self.is_suspect = False
        self.is_high = False

    @property
    def means(self) -> list[float]:
        """Means of the last blocks, oldest first; NaN: none."""
        return [_NAN] * (BLOCKS - len(self.blocks)) + self.blocks

    @means.setter
    def means(self, means: list[float]) -> None:
        self.blocks = [mean for mean in means if not math.isnan(mean)]

    def close(self, sign: float) -> None:
        """Close the open block and set the level; NaN if there is none."""
        self.level = _NAN
        if not self.count:
            return
        mean = self.sum / self.count
        self.sum, self.count = 0.0, 0
        blocks = self.blocks
        blocks.append(-mean if sign < 0 else mean)
        if len(blocks) > BLOCKS:
            del blocks[0]
        if len(blocks) >= FEWEST_BLOCKS:
            ordered = sorted(blocks)
            is_full = len(blocks) == BLOCKS
            self.level = 0.5 * (ordered[1] + ordered[2]) if is_full else ordered[1]

    def restart(self) -> None:
        """Restart the smoothing."""
        self.blocks = []
        self.past = [_NAN] * (2 * LAG)
        self.heights = [_NAN] * LAG
        self.sum, self.count = 0.0, 0
        self.peak = -math.inf


class ScalarRise(ScalarDetector):
    """See `Rise`."""

    def __init__(self, spec: RiseSpec) -> None:
        self.threshold = spec.above
        self._spec = spec
        self._sign = -1.0 if spec.direction is Direction.DOWN else 1.0
        self._is_two_sided = spec.direction is Direction.BOTH
        self._is_log = spec.scale is Scale.LOG
        self._block = max(1, spec.smooth // BLOCKS)
        self._length = self._block
        entries = max(4 * LAG, spec.window // self._block)
        patience = spec.patience // self._block
        self._levels = ScalarBaseline(entries, min(spec.ready, entries), patience)
        self._changes = ScalarBaseline(entries, LAG, patience)
        self._lanes: list[_Lane] = []
        self._first = -1  # step of the open block
        self._last = -1
        self._bound = SUSPECT * spec.above

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        self._levels.resize(num_series)
        self._changes.resize(num_series)
        self._lanes += [_Lane() for _ in range(num_series - len(self._lanes))]

    def update(self, step: int, samples: Sequence[tuple[int, float]]) -> Sequence[Judgement]:
        """Add the samples of a step; judge the levels when a block is complete."""
        is_log = self._is_log
        for row, value in samples:
            if math.isfinite(value) and not (is_log and value <= 0):
                lane = self._lanes[row]
                lane.sum += _log(value) if is_log else value
                lane.count += 1
        first = step if self._first < 0 else self._first
        gap = step - self._last if self._last >= 0 else 1
        self._last = step
        if step + gap - first < self._block:
            self._first = first
            return _NOTHING
        self._first = -1
        self._length = max(self._block, gap)
        return self._judge(step)

    def _judge(self, step: int) -> Sequence[Judgement]:
        lanes, known = self._lanes, []
        for row, lane in enumerate(lanes):
            lane.close(self._sign)
            lane.is_suspect = lane.is_high = False
            lane.rise = lane.level - lane.reference
            is_ready = self._levels.ready[row] and self._changes.ready[row] and lane.noise > 0
            known.append(is_ready and not math.isnan(lane.level))
            if known[row]:
                self._measure(lane)
        suspect = [lane.is_suspect for lane in lanes]
        if True in suspect:
            for lane in lanes:
                if self._is_healing(step, lane):
                    lane.is_high = False
        else:
            for lane in lanes:
                lane.peak = -math.inf
                lane.heights = [_NAN] * LAG
        self._learn(step, known, suspect)
        return [
            Judgement(row, lane.is_high, lane.score) for row, lane in enumerate(lanes) if known[row]
        ]

    def _measure(self, lane: _Lane) -> None:
        """Measure the rise of a level that can be judged."""
        spec, scale, rise = self._spec, 1.0, lane.rise
        if not self._is_log:
            progress = PROGRESS_SHARE * larger(lane.top - lane.reference, 0.0)
            scale = larger(abs(lane.reference), progress)
        lane.unit = larger(lane.noise, larger(spec.floor * scale, TINY))
        lane.score = score = rise / lane.unit
        if self._is_two_sided and score < 0:
            score, rise = -score, -rise
        if score > self._bound:
            lane.is_suspect = True
            lane.is_high = score > spec.above and rise > spec.least * scale

    def _is_healing(self, step: int, lane: _Lane) -> bool:
        """Return whether a rise is soon gone if it goes on falling as since its peak."""
        if not lane.is_suspect:
            lane.peak = -math.inf
            del lane.heights[0]
            lane.heights.append(_NAN)
            return False
        rise = abs(lane.rise)
        if rise >= lane.peak:
            lane.peak, lane.peak_step = rise, float(step)
        decay = -_log(max(rise / lane.peak, TINY))
        elapsed = step - lane.peak_step
        heal_within = self._spec.heal_within
        is_falling = lane.peak - rise > FALL * lane.unit and elapsed * RETURN < decay * heal_within
        fall = lane.heights[0] - rise  # over the last LAG blocks
        is_level = fall * heal_within < RETURN * LAG * self._length * rise
        del lane.heights[0]
        lane.heights.append(rise)
        return is_falling and not is_level

    def _learn(self, step: int, known: list[bool], suspect: list[bool]) -> None:
        levels, changes = [], []
        for lane in self._lanes:
            past, level = lane.past, lane.level
            levels.append(level)
            changes.append(abs(level - 2.0 * past[LAG] + past[0]) / SECOND)
            del past[0]
            past.append(_NAN if lane.is_suspect else level)
            lane.top = max(lane.top, past[-1])
        self._levels.learn(step, levels, known, suspect)
        self._changes.learn(step, changes, known, suspect)
        if self._levels.is_stale():
            for lane, ring in zip(self._lanes, self._levels.rings, strict=True):
                lane.reference = ring.quantile(BEST_SHARE)
        if self._changes.is_stale():
            for lane, ring in zip(self._lanes, self._changes.rings, strict=True):
                lane.noise = ring.quantile(CALM_SHARE) / NORMAL_QUANTILE

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
        for lane in self._lanes:
            lane.top = -math.inf
        self._restart()

    def _restart(self) -> None:
        self._first = self._last = -1
        for lane in self._lanes:
            lane.restart()

    def state(self) -> State:
        """Return the arrays."""
        own = {
            name: np.array([getattr(lane, name) for lane in self._lanes], np.float64)
            for name in OWN
        }
        clock = {"clock": np.array([self._first, self._last], np.int64)}
        return {**self._levels.state("levels."), **self._changes.state("changes."), **own, **clock}

    def load(self, state: State) -> None:
        """Take over the arrays."""
        self._levels.load(state, "levels.")
        self._changes.load(state, "changes.")
        self._lanes = [_Lane() for _ in self._levels.rings]
        for name in OWN:
            for lane, value in zip(self._lanes, state[name].tolist(), strict=True):
                setattr(lane, name, value)
        self._first, self._last = state["clock"].tolist()
