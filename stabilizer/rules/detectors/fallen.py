"""A value far below what it was at first, such as the entropy of a layer's attention."""

from __future__ import annotations

import numpy as np

from stabilizer.rules.detector_specs import FallenSpec
from stabilizer.rules.detectors.interface import BoolArray, Detection, FloatArray, State, grown


class Fallen:
    """Flags samples below a share of the largest early value, or under a bound.

    The early value is frozen: a slow collapse cannot drag it along. It outlives a rollback, since
    the early steps are not repeated. The score is the sample as a share of it.
    """

    def __init__(self, spec: FallenSpec) -> None:
        self.threshold: float | None = spec.share
        self._spec = spec
        self._early = np.empty(0)
        self._until = np.empty(0, np.int64)

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        self._early = grown(self._early, num_series, np.nan)
        self._until = grown(self._until, num_series, -1)

    def update(self, step: int, values: FloatArray, usable: BoolArray) -> Detection:
        """Judge one sample of every series."""
        finite = usable & np.isfinite(values)
        self._until[finite & (self._until < 0)] = step + self._spec.early
        is_early = finite & (step <= self._until)
        np.fmax(self._early, values, out=self._early, where=is_early)
        has_fallen = values < self._spec.share * self._early
        if self._spec.under is not None:
            has_fallen |= values < self._spec.under
        score = np.where(finite, values / np.where(self._early == 0, 1.0, self._early), np.nan)
        return Detection(finite, finite & has_fallen, score)

    def learned(self) -> tuple[int, int] | None:
        """Return None: it judges from the first sample on."""
        return None

    def rewind(self, step: int) -> None:
        """Keep the early values."""

    def forget(self) -> None:
        """Reset: the job has entered a new phase."""
        self._early[:] = np.nan
        self._until[:] = -1

    def state(self) -> State:
        """Return the arrays."""
        return {"early": self._early, "until": self._until}

    def load(self, state: State) -> None:
        """Take over the arrays."""
        self._early = np.array(state["early"], np.float64)
        self._until = np.array(state["until"], np.int64)
