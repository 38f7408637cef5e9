"""Detectors without a learned baseline.

A fixed bound; values that are not finite, a test of its own, since every comparison with NaN is
false; a series that repeats one value exactly; a value far below what it was at first.
"""

from __future__ import annotations

import math

import numpy as np

from stabilizer.rules.detector_specs import FallenSpec, StuckSpec, ThresholdSpec
from stabilizer.rules.detectors.interface import BoolArray, Detection, FloatArray, State, grown


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


class Stuck:
    """Flags a series that has not changed for so many steps and samples, after it had changed.

    A series that was never anything else is not flagged: it may be a constant. The score is the
    number of steps.
    """

    def __init__(self, spec: StuckSpec) -> None:
        self.threshold: float | None = spec.steps
        self._spec = spec
        self._last = np.empty(0)
        self._since = np.empty(0, np.int64)
        self._samples = np.empty(0, np.int64)
        self._has_changed = np.empty(0, np.bool_)

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        self._last = grown(self._last, num_series, np.nan)
        self._since = grown(self._since, num_series, -1)
        self._samples = grown(self._samples, num_series, 0)
        self._has_changed = grown(self._has_changed, num_series, 0)

    def update(self, step: int, values: FloatArray, usable: BoolArray) -> Detection:
        """Judge one sample of every series."""
        finite = usable & np.isfinite(values)
        changed = finite & (values != self._last)
        self._has_changed |= changed & (self._samples > 0)
        self._since[changed] = step
        self._samples[changed] = 0
        self._samples += finite
        np.copyto(self._last, values, where=changed)
        steps = step - self._since
        flagged = (steps >= self._spec.steps) & (self._samples >= self._spec.samples)
        score = np.where(finite, steps.astype(np.float64), np.nan)
        return Detection(finite, finite & self._has_changed & flagged, score)

    def learned(self) -> tuple[int, int] | None:
        """Return None: it judges from the first sample on."""
        return None

    def rewind(self, step: int) -> None:
        """Restart the count: a value seen after the step is forgotten, and earlier ones with it."""
        del step
        self._last[:] = np.nan
        self._samples[:] = 0

    def forget(self) -> None:
        """Reset: the job has entered a new phase."""
        self.rewind(0)
        self._has_changed[:] = False

    def state(self) -> State:
        """Return the arrays."""
        return {
            "last": self._last,
            "since": self._since,
            "samples": self._samples,
            "has_changed": self._has_changed,
        }

    def load(self, state: State) -> None:
        """Take over the arrays."""
        self._last = np.array(state["last"], np.float64)
        self._since = np.array(state["since"], np.int64)
        self._samples = np.array(state["samples"], np.int64)
        self._has_changed = np.array(state["has_changed"], np.bool_)


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
