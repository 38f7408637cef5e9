"""A fall under a bound and clearly under the series' own baseline, such as attention entropy's."""

from __future__ import annotations

from typing import Final

import numpy as np

from stabilizer.rules.detector_specs import CollapseSpec
from stabilizer.rules.detectors.baseline import Baseline
from stabilizer.rules.detectors.interface import BoolArray, Detection, FloatArray, State, grown

BEST_SHARE: Final = 0.9
"""The baseline is the upper decile: a slow collapse drags a median along, but not the best."""


class Collapse:
    """Flags samples that are low and have fallen. A module that was always low is not flagged.

    The score is the sample as a share of its baseline.
    """

    def __init__(self, spec: CollapseSpec) -> None:
        self._below = spec.below
        self.threshold: float | None = 1.0 - spec.drop
        self._keep = 1.0 - spec.drop
        self._baseline = Baseline(spec.window, spec.warm_up, spec.patience)
        self._best = np.empty(0)

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        self._baseline.resize(num_series)
        self._best = grown(self._best, num_series, np.nan)

    def update(self, step: int, values: FloatArray, usable: BoolArray) -> Detection:
        """Judge one sample of every series, then learn the healthy ones."""
        finite = usable & np.isfinite(values)
        values = np.where(finite, values, np.nan)
        known = finite & self._baseline.ready
        has_fallen = values < self._best - (1.0 - self._keep) * np.abs(self._best)
        flagged = known & has_fallen & (values < self._below)
        score = np.where(known, values / np.where(self._best == 0, np.nan, self._best), np.nan)
        self._baseline.learn(step, values, known, flagged)
        self._refresh()
        return Detection(known, flagged, score)

    def _refresh(self) -> None:
        if self._baseline.is_stale():
            self._best = self._baseline.ring.quantile(BEST_SHARE)

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
        return {**self._baseline.state(), "best": self._best}

    def load(self, state: State) -> None:
        """Take over the arrays."""
        self._baseline.load(state)
        self._best = np.array(state["best"], np.float64)
