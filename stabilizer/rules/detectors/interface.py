"""The detector interface: samples of many series in, detections out, state of fixed size.

Shapes: N is the number of series that the rule has selected so far. A sample that is absent,
inhibited or non-finite is not judged and not learned; a flagged sample is judged, not learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
State = Mapping[str, npt.NDArray[np.generic]]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Detection:
    """A detector's result for one sample of every series.

    Args:
        known: Shape [N]; whether it was judged. Unknown is not healthy.
        flagged: Shape [N]; implies known.
        score: Shape [N]; what was compared with the threshold, NaN where unknown.
    """

    known: BoolArray
    flagged: BoolArray
    score: FloatArray


def unknown(num_series: int) -> Detection:
    """Return the result of a step at which nothing can be judged; not to be changed."""
    known, flagged = np.zeros(num_series, np.bool_), np.zeros(num_series, np.bool_)
    return Detection(known, flagged, np.full(num_series, np.nan))


class Detector(Protocol):
    """A condition on every series of a rule, each by itself."""

    @property
    def threshold(self) -> float | None:
        """What scores are compared with; None if there is nothing to compare."""
        ...

    def resize(self, num_series: int) -> None:
        """Make room for more series; existing ones keep their state."""
        ...

    def update(self, step: int, values: FloatArray, usable: BoolArray) -> Detection:
        """Judge one sample of every series, then learn from those that are healthy.

        Called with floating-point warnings off: NaN and Inf are data.

        Args:
            step: Completed optimizer steps; ascends within an attempt.
            values: Shape [N]; anything where not usable.
            usable: Shape [N]; measured, and not inhibited.
        """
        ...

    def learned(self) -> tuple[int, int] | None:
        """Return how many samples the furthest series has learned, and how many it needs.

        None for a detector that learns nothing.
        """
        ...

    def rewind(self, step: int) -> None:
        """Forget what was learned after this step: a new attempt continues from there."""
        ...

    def forget(self) -> None:
        """Reset: the job has entered a new phase."""
        ...

    def state(self) -> State:
        """Return the arrays that make up the state; not copies."""
        ...

    def load(self, state: State) -> None:
        """Take over a state.

        Raises:
            KeyError: An array is missing.
            ValueError: An array has another shape than this detector's.
        """
        ...


def grown(array: npt.NDArray[Scalar], size: int, fill: float) -> npt.NDArray[Scalar]:
    """Return an array extended to `size` series; never shrunk."""
    more = np.full(max(0, size - len(array)), fill, array.dtype)
    return np.concatenate([array, more])


def part_of(state: State, prefix: str) -> State:
    """Return the arrays whose name has a prefix, without it."""
    length = len(prefix)
    return {name[length:]: array for name, array in state.items() if name.startswith(prefix)}
