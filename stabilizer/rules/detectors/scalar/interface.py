"""The interface of detectors in plain floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from stabilizer.rules.detectors.interface import State


class Judgement(NamedTuple):
    """A series that was judged."""

    row: int
    is_flagged: bool
    score: float


class ScalarDetector:
    """A condition on every series of a rule. See `Detector` for what is not described here."""

    threshold: float | None = None

    def resize(self, num_series: int) -> None:
        """Make room for more series; existing ones keep their state."""

    def update(self, step: int, samples: Sequence[tuple[int, float]]) -> Sequence[Judgement]:
        """Judge the samples of a step, then learn from those that are healthy.

        Args:
            step: Completed optimizer steps; ascends within an attempt.
            samples: Row and value of the series that were measured, at least one.

        Returns:
            What could be judged, by row.
        """
        raise NotImplementedError

    def learned(self) -> tuple[int, int] | None:
        """Return how many samples the furthest series has learned, and how many it needs."""
        return None

    def rewind(self, step: int) -> None:
        """Forget what was learned after this step: a new attempt continues from there."""

    def forget(self) -> None:
        """Reset: the job has entered a new phase."""

    def state(self) -> State:
        """Return the state as the arrays of the detector on arrays."""
        return {}

    def load(self, state: State) -> None:
        """Take over a state, saved by this detector or by the one on arrays."""


def larger(first: float, second: float) -> float:
    """Return the larger number; NaN if one is NaN, as `np.maximum`."""
    return first if first >= second or math.isnan(first) else second
