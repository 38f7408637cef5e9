"""A series of any length in bounded memory, with every extreme that a small chart can show."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from stabilizer.collector.services.frames.reduction import reduce_extremes

Steps = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32]

MAX_BUCKETS: Final = 96
MAX_SAMPLES: Final = 1024
"""Samples kept before they are thinned; at least four for each bucket, and room for new ones."""


class Trace:
    """Keeps the first minimum, first maximum, first non-finite and last sample of buckets of steps.

    Buckets begin at multiples of their width, which doubles when there are too many of them. So it
    does not matter in which order samples come, nor whether one comes twice.
    """

    def __init__(self) -> None:
        self._width = 1
        self._steps: Steps = np.empty(0, np.int64)
        self._values: Values = np.empty(0, np.float32)

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, steps: Steps, values: Values) -> None:
        """Add samples, in any order; of two at one step the later given counts.

        Args:
            steps: Shape [K].
            values: Shape [K]; NaN and Inf are data.
        """
        self._steps = np.concatenate([self._steps, steps])
        self._values = np.concatenate([self._values, values])
        if len(self._steps) > MAX_SAMPLES:
            self._thin()

    def cut(self, step: int) -> int:
        """Forget the bucket of a step and all behind it.

        Returns:
            The first step that was forgotten: what is still true from there on must be added again.
        """
        first = step // self._width * self._width
        kept = self._steps < first
        self._steps, self._values = self._steps[kept], self._values[kept]
        return first

    def points(self, max_points: int) -> tuple[Steps, Values]:
        """Return at most so many samples (4 or more), steps ascending, extremes kept."""
        self._sort()
        kept = reduce_extremes(self._values, max_points)
        return self._steps[kept], self._values[kept]

    def _sort(self) -> None:
        # Reversed, so that of equal steps the one that came last is found first.
        steps, first = np.unique(self._steps[::-1], return_index=True)
        self._steps, self._values = steps, self._values[::-1][first]

    def _thin(self) -> None:
        self._sort()
        while len(np.unique(self._steps // self._width)) > MAX_BUCKETS:
            self._width *= 2
        kept = _extremes(self._steps // self._width, self._values)
        self._steps, self._values = self._steps[kept], self._values[kept]


def _extremes(buckets: Steps, values: Values) -> npt.NDArray[np.intp]:
    """Choose of each bucket its first minimum, first maximum, first non-finite and last sample."""
    finite = np.isfinite(values)
    starts = np.flatnonzero(np.diff(buckets, prepend=buckets[0] - 1))
    # A stable sort within buckets: the first of each is the earliest among equals.
    lowest = np.lexsort((np.where(finite, values, np.inf), buckets))[starts]
    highest = np.lexsort((np.where(finite, -values, np.inf), buckets))[starts]
    broken = np.lexsort((finite, buckets))[starts]
    last = np.append(starts[1:], len(values)) - 1
    return np.unique(
        np.concatenate(
            [lowest[finite[lowest]], highest[finite[highest]], broken[~finite[broken]], last]
        )
    )
