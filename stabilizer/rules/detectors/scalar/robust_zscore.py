"""Distance from the median of the last healthy samples, in floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stabilizer.rules.detector_specs import RobustZscoreSpec, Scale
from stabilizer.rules.detectors.baseline import ROUNDING
from stabilizer.rules.detectors.interface import State
from stabilizer.rules.detectors.robust_zscore import TINY
from stabilizer.rules.detectors.scalar.history import ScalarBaseline
from stabilizer.rules.detectors.scalar.interface import Judgement, ScalarDetector, larger

_NAN = math.nan


class ScalarRobustZscore(ScalarDetector):
    """See `RobustZscore`."""

    def __init__(self, spec: RobustZscoreSpec) -> None:
        self.threshold = spec.above
        self._above = spec.above
        self._is_two_sided = spec.two_sided
        self._is_log = spec.scale is Scale.LOG
        self._share = max(spec.relative_floor, ROUNDING)
        self._floor = max(spec.absolute_floor, TINY)
        self._baseline = ScalarBaseline(spec.window, spec.warm_up, spec.patience)
        self._center: list[float] = []
        self._spread: list[float] = []

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        self._baseline.resize(num_series)
        for own in (self._center, self._spread):
            own.extend([_NAN] * (num_series - len(own)))

    def update(self, step: int, samples: Sequence[tuple[int, float]]) -> Sequence[Judgement]:
        """Judge the samples of a step, then learn the healthy ones."""
        num_series = len(self._center)
        scaled = [_NAN] * num_series
        known, flagged = [False] * num_series, [False] * num_series
        judgements = []
        for row, value in samples:
            if not math.isfinite(value) or (self._is_log and value <= 0):
                continue
            scaled[row] = float(np.log(value)) if self._is_log else value
            if self._baseline.ready[row]:
                score = (scaled[row] - self._center[row]) / self._spread[row]
                distance = abs(score) if self._is_two_sided else score
                known[row], flagged[row] = True, distance > self._above
                judgements.append(Judgement(row, flagged[row], score))
        self._baseline.learn(step, scaled, known, flagged)
        self._refresh()
        return judgements

    def _refresh(self) -> None:
        if not self._baseline.is_stale():
            return
        for row, ring in enumerate(self._baseline.rings):
            center = self._center[row] = ring.median()
            relative = self._share if self._is_log else self._share * abs(center)
            floor = larger(relative, self._floor)
            self._spread[row] = larger(ring.spread(center), floor)

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
        return {
            **self._baseline.state(""),
            "center": np.array(self._center, np.float64),
            "spread": np.array(self._spread, np.float64),
        }

    def load(self, state: State) -> None:
        """Take over the arrays."""
        self._baseline.load(state, "")
        self._center = state["center"].tolist()
        self._spread = state["spread"].tolist()
