"""NaN and Inf: a test of its own, since every comparison with NaN is false."""

from __future__ import annotations

import numpy as np

from stabilizer.rules.detectors.interface import BoolArray, Detection, FloatArray, State


class Nonfinite:
    """Flags samples that are NaN or Inf. Learns nothing; the score is 1 for a flagged sample."""

    threshold: float | None = None

    def resize(self, num_series: int) -> None:
        """Has no state."""

    def update(self, step: int, values: FloatArray, usable: BoolArray) -> Detection:  # noqa: ARG002  interface
        """Judge one sample of every series."""
        flagged = usable & ~np.isfinite(values)
        return Detection(usable, flagged, flagged.astype(np.float64))

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
