"""Detectors without a learned baseline, in floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stabilizer.rules.detector_specs import FallenSpec, StuckSpec, ThresholdSpec
from stabilizer.rules.detectors.interface import State
from stabilizer.rules.detectors.scalar.interface import Judgement, ScalarDetector


class ScalarThreshold(ScalarDetector):
    """See `Threshold`."""

    def __init__(self, spec: ThresholdSpec) -> None:
        self._above = math.inf if spec.above is None else spec.above
        self._below = -math.inf if spec.below is None else spec.below
        self.threshold = spec.below if spec.above is None else spec.above

    def update(self, step: int, samples: Sequence[tuple[int, float]]) -> Sequence[Judgement]:  # noqa: ARG002  interface
        """Judge the samples of a step."""
        return [
            Judgement(row, value > self._above or value < self._below, value)
            for row, value in samples
            if math.isfinite(value)
        ]


class ScalarNonfinite(ScalarDetector):
    """See `Nonfinite`."""

    def update(self, step: int, samples: Sequence[tuple[int, float]]) -> Sequence[Judgement]:  # noqa: ARG002  interface
        """Judge the samples of a step."""
        return [
            Judgement(row, False, 0.0) if math.isfinite(value) else Judgement(row, True, 1.0)
            for row, value in samples
        ]


class ScalarStuck(ScalarDetector):
    """See `Stuck`."""

    def __init__(self, spec: StuckSpec) -> None:
        self.threshold = spec.steps
        self._spec = spec
        self._last: list[float] = []
        self._since: list[int] = []
        self._samples: list[int] = []
        self._has_changed: list[bool] = []

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        missing = range(num_series - len(self._last))
        self._last += [math.nan for _ in missing]
        self._since += [-1 for _ in missing]
        self._samples += [0 for _ in missing]
        self._has_changed += [False for _ in missing]

    def update(self, step: int, samples: Sequence[tuple[int, float]]) -> Sequence[Judgement]:
        """Judge the samples of a step."""
        return [self._judge(step, *sample) for sample in samples if math.isfinite(sample[1])]

    def _judge(self, step: int, row: int, value: float) -> Judgement:
        if value != self._last[row]:
            if self._samples[row]:
                self._has_changed[row] = True
            self._since[row], self._samples[row], self._last[row] = step, 0, value
        self._samples[row] += 1
        steps = step - self._since[row]
        is_flagged = (
            self._has_changed[row]
            and steps >= self._spec.steps
            and self._samples[row] >= self._spec.samples
        )
        return Judgement(row, is_flagged, float(steps))

    def rewind(self, step: int) -> None:
        """Restart the count: a value seen after the step is forgotten, and earlier ones with it."""
        del step
        self._last = [math.nan for _ in self._last]
        self._samples = [0 for _ in self._samples]

    def forget(self) -> None:
        """Reset: the job has entered a new phase."""
        self.rewind(0)
        self._has_changed = [False for _ in self._has_changed]

    def state(self) -> State:
        """Return the arrays."""
        return {
            "last": np.array(self._last, np.float64),
            "since": np.array(self._since, np.int64),
            "samples": np.array(self._samples, np.int64),
            "has_changed": np.array(self._has_changed, np.bool_),
        }

    def load(self, state: State) -> None:
        """Take over the arrays."""
        self._last = state["last"].tolist()
        self._since = state["since"].tolist()
        self._samples = state["samples"].tolist()
        self._has_changed = state["has_changed"].tolist()


class ScalarFallen(ScalarDetector):
    """See `Fallen`."""

    def __init__(self, spec: FallenSpec) -> None:
        self.threshold = spec.share
        self._share = spec.share
        self._under = -math.inf if spec.under is None else spec.under
        self._steps = spec.early
        self._early: list[float] = []
        self._until: list[int] = []

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        missing = range(num_series - len(self._early))
        self._early += [math.nan for _ in missing]
        self._until += [-1 for _ in missing]

    def update(self, step: int, samples: Sequence[tuple[int, float]]) -> Sequence[Judgement]:
        """Judge the samples of a step."""
        return [self._judge(step, *sample) for sample in samples if math.isfinite(sample[1])]

    def _judge(self, step: int, row: int, value: float) -> Judgement:
        if self._until[row] < 0:
            self._until[row] = step + self._steps
        if step <= self._until[row] and not value <= self._early[row]:
            self._early[row] = value
        early = self._early[row]
        is_flagged = value < self._share * early or value < self._under
        return Judgement(row, is_flagged, value / (early or 1.0))

    def forget(self) -> None:
        """Reset: the job has entered a new phase."""
        self._early = [math.nan for _ in self._early]
        self._until = [-1 for _ in self._until]

    def state(self) -> State:
        """Return the arrays."""
        return {
            "early": np.array(self._early, np.float64),
            "until": np.array(self._until, np.int64),
        }

    def load(self, state: State) -> None:
        """Take over the arrays."""
        self._early = state["early"].tolist()
        self._until = state["until"].tolist()
