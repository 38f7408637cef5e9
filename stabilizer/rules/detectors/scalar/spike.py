"""A sudden move up or down, in floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stabilizer.rules.detector_specs import Direction, SpikeSpec
from stabilizer.rules.detectors.baseline import ROUNDING
from stabilizer.rules.detectors.interface import State
from stabilizer.rules.detectors.ring import MAD_TO_SIGMA
from stabilizer.rules.detectors.scalar.history import ScalarBaseline
from stabilizer.rules.detectors.scalar.interface import Judgement, ScalarDetector, larger
from stabilizer.rules.detectors.spike import TINY

_NAN = math.nan


class ScalarSpike(ScalarDetector):
    """See `Spike`."""

    def __init__(self, spec: SpikeSpec) -> None:
        self.threshold = spec.above
        self._above = spec.above
        self._direction = spec.direction
        self._share = max(spec.relative_floor, ROUNDING)
        self._floor = max(spec.absolute_floor, TINY)
        self._levels = ScalarBaseline(spec.window, spec.warm_up, spec.patience)
        self._jumps = ScalarBaseline(spec.window, spec.warm_up, spec.patience)
        self._last: list[float] = []
        self._center: list[float] = []
        self._spread: list[float] = []

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        self._levels.resize(num_series)
        self._jumps.resize(num_series)
        for own in (self._last, self._center, self._spread):
            own.extend([_NAN] * (num_series - len(own)))

    def update(self, step: int, samples: Sequence[tuple[int, float]]) -> Sequence[Judgement]:
        """Judge the samples of a step, then learn the healthy ones."""
        num_series = len(self._last)
        values, jumps = [_NAN] * num_series, [_NAN] * num_series
        known, flagged = [False] * num_series, [False] * num_series
        judgements = []
        for row, value in samples:
            if not math.isfinite(value):
                continue
            values[row], jumps[row] = value, abs(value - self._last[row])
            if self._levels.ready[row] and self._jumps.ready[row]:
                score = (value - self._center[row]) / self._spread[row]
                known[row], flagged[row] = True, self._oriented(score) > self._above
                judgements.append(Judgement(row, flagged[row], score))
            if not flagged[row]:
                self._last[row] = value
        self._levels.learn(step, values, known, flagged)
        self._jumps.learn(step, jumps, known, flagged)
        self._refresh()
        return judgements

    def _oriented(self, score: float) -> float:
        if self._direction is Direction.BOTH:
            return abs(score)
        return -score if self._direction is Direction.DOWN else score

    def _refresh(self) -> None:
        has_levels, has_jumps = self._levels.is_stale(), self._jumps.is_stale()
        if not has_levels and not has_jumps:
            return
        if has_levels:
            self._center = [ring.median() for ring in self._levels.rings]
        if has_jumps:
            factor = MAD_TO_SIGMA / math.sqrt(2)
            self._spread = [ring.median() * factor for ring in self._jumps.rings]
        for row, center in enumerate(self._center):
            floor = larger(self._share * abs(center), self._floor)
            self._spread[row] = larger(self._spread[row], floor)

    def learned(self) -> tuple[int, int] | None:
        """Return how much of the baseline is learned."""
        return self._levels.learned()

    def rewind(self, step: int) -> None:
        """Forget what was learned after a step."""
        self._levels.rewind(step)
        self._jumps.rewind(step)
        self._last = [_NAN for _ in self._last]
        self._refresh()

    def forget(self) -> None:
        """Reset: the job has entered a new phase."""
        self._levels.forget()
        self._jumps.forget()
        self._last = [_NAN for _ in self._last]

    def state(self) -> State:
        """Return the arrays."""
        own = {"last": self._last, "center": self._center, "spread": self._spread}
        return {
            **self._levels.state("levels."),
            **self._jumps.state("jumps."),
            **{name: np.array(values, np.float64) for name, values in own.items()},
        }

    def load(self, state: State) -> None:
        """Take over the arrays."""
        self._levels.load(state, "levels.")
        self._jumps.load(state, "jumps.")
        self._last = state["last"].tolist()
        self._center = state["center"].tolist()
        self._spread = state["spread"].tolist()
