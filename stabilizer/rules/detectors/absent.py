"""A series that came regularly and is measured no more while the run goes on."""

from __future__ import annotations

from typing import Final

import numpy as np

from stabilizer.rules.detector_specs import AbsentSpec
from stabilizer.rules.detectors.interface import (
    BoolArray,
    Detection,
    FloatArray,
    State,
    grown,
    unknown,
)

PATIENCE: Final = 3
"""Times the longest gap of a series before it is missed."""


class Absent:
    """Flags series without a sample for so many steps, and for so many measured steps of the run.

    Counted are measured steps as well: a run that jumps ahead by 10,000 steps has missed nothing.
    A value that is not finite is a sample. The score is the number of steps without one.
    """

    def __init__(self, spec: AbsentSpec) -> None:
        self.threshold: float | None = spec.steps
        self._spec = spec
        self._tick = np.zeros(1, np.int64)  # steps of the run that were measured
        self._seen_step = np.empty(0, np.int64)
        self._seen_tick = np.empty(0, np.int64)
        self._longest = np.empty(0, np.int64)
        self._samples = np.empty(0, np.int64)
        self._nothing = unknown(0)

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        self._seen_step = grown(self._seen_step, num_series, 0)
        self._seen_tick = grown(self._seen_tick, num_series, 0)
        self._longest = grown(self._longest, num_series, 0)
        self._samples = grown(self._samples, num_series, 0)
        self._nothing = unknown(num_series)

    def update(self, step: int, values: FloatArray, usable: BoolArray) -> Detection:  # noqa: ARG002  interface
        """Take note of the series that are measured; `end_step` judges."""
        tick = int(self._tick[0]) + 1
        gap = tick - self._seen_tick
        is_usual = (gap <= self._limit()) | (self._samples < self._spec.samples)
        is_usual &= usable & (self._samples > 0)
        np.maximum(self._longest, gap, out=self._longest, where=is_usual)
        self._samples += usable
        self._seen_tick[usable] = tick
        self._seen_step[usable] = step
        return self._nothing

    def end_step(self, step: int) -> Detection:
        """Judge every series at the end of a step of the run."""
        self._tick += 1
        known = self._samples >= self._spec.samples
        missing = step - self._seen_step
        flagged = known & (missing >= self._spec.steps)
        flagged &= self._tick[0] - self._seen_tick > self._limit()
        return Detection(known, flagged, np.where(known, missing.astype(np.float64), np.nan))

    def _limit(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.maximum(self._spec.samples, PATIENCE * self._longest)

    def learned(self) -> tuple[int, int] | None:
        """Return how many samples the furthest series has, and how many it needs."""
        most = int(self._samples.max(initial=0))
        return min(most, self._spec.samples), self._spec.samples

    def rewind(self, step: int) -> None:
        """Restart the count: a new attempt has yet to measure."""
        np.minimum(self._seen_step, step, out=self._seen_step)
        self._seen_tick[:] = self._tick[0]

    def forget(self) -> None:
        """Reset: the job has entered a new phase, and may measure something else."""
        self._samples[:] = 0
        self._longest[:] = 0

    def state(self) -> State:
        """Return the arrays."""
        return {
            "tick": self._tick,
            "seen_step": self._seen_step,
            "seen_tick": self._seen_tick,
            "longest": self._longest,
            "samples": self._samples,
        }

    def load(self, state: State) -> None:
        """Take over the arrays."""
        for name in ("tick", "seen_step", "seen_tick", "longest", "samples"):
            setattr(self, f"_{name}", np.array(state[name], np.int64))
        self._nothing = unknown(len(self._samples))
