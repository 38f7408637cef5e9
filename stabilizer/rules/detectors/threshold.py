"""A fixed bound."""

from __future__ import annotations

import math

import numpy as np

from stabilizer.rules.detector_specs import ThresholdSpec
from stabilizer.rules.detectors.interface import BoolArray, Detection, FloatArray, State


class Threshold:
    """Flags finite samples beyond a bound. Learns nothing; the score is the sample."""

    def __init__(self, spec: ThresholdSpec) -> None:
        self._above = math.inf if spec.above is None else spec.above
        self._below = -math.inf if spec.below is None else spec.below
        self.threshold: float | None = spec.below if spec.above is None else spec.above

    def resize(self, num_series: int) -> None:
        """Has no state."""

    def update(self, step: int, values: FloatArray, usable: BoolArray) -> Detection:  # noqa: ARG002  interface
        """Judge one sample of every series."""
        known = usable & np.isfinite(values)
        beyond = (values > self._above) | (values < self._below)
        return Detection(known, known & beyond, np.where(known, values, np.nan))

    def learned(self) -> tuple[int, int] | None:
        """Return None: it judges from the first sample on."""
        return None

    def rewind(self, step: int) -> None:
        """Has no state."""

    def forget(self) -> None:
        """Has no state."""

    def state(self) -> State:
        """Return nothing."""
        return {}

    def load(self, state: State) -> None:
        """Has no state."""
