"""A series that repeats one value exactly."""

from __future__ import annotations

import numpy as np

from stabilizer.rules.detector_specs import StuckSpec
from stabilizer.rules.detectors.interface import BoolArray, Detection, FloatArray, State, grown


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
