"""Means of blocks of steps: the same levels whether a series is sampled at every step or rarely."""

from __future__ import annotations

import numpy as np

from stabilizer.rules.detectors.interface import BoolArray, FloatArray, State, grown


class BlockMeans:
    """The last means of every series, and the step at which each block ended.

    A block takes `length` steps, or one sample where samples are rarer. A series without a finite
    sample in a block has no mean of it.

    Attributes:
        means: Shape [N, number], oldest first; NaN where there is none yet.
        ends: Shape [N, number], likewise.
    """

    def __init__(self, length: int, number: int) -> None:
        self._length = length
        self._number = number
        self._clock = np.full(2, -1, np.int64)  # first step of the open block, last step
        self._sum = np.empty(0)
        self._count = np.empty(0)
        self.means = np.empty((0, number))
        self.ends = np.empty((0, number))

    def resize(self, num_series: int) -> None:
        """Make room for more series."""
        missing = np.full((num_series - len(self._sum), self._number), np.nan)
        self.means = np.concatenate([self.means, missing])
        self.ends = np.concatenate([self.ends, missing])
        self._sum = grown(self._sum, num_series, 0)
        self._count = grown(self._count, num_series, 0)

    def add(self, step: int, values: FloatArray, rows: BoolArray) -> BoolArray | None:
        """Add one sample of every series in `rows`.

        Returns:
            The series with a new mean if a block has ended; None if not.
        """
        np.add(self._sum, values, out=self._sum, where=rows)
        self._count += rows
        first, last = self._clock.tolist()
        first = step if first < 0 else first
        gap = step - last if last >= 0 else 1
        if step + gap - first < self._length:
            self._clock[:] = first, step
            return None
        self._clock[:] = -1, step
        fresh = self._count > 0
        where = slice(None) if fresh.all() else fresh
        self.means[where, :-1] = self.means[where, 1:]
        self.ends[where, :-1] = self.ends[where, 1:]
        self.means[where, -1] = (self._sum / np.maximum(self._count, 1))[where]
        self.ends[where, -1] = step
        self._sum.fill(0)
        self._count.fill(0)
        return fresh

    @property
    def is_full(self) -> BoolArray:
        """Whether every mean of a series is known. Shape [N]."""
        return ~np.isnan(self.means[:, 0])

    def learned(self) -> tuple[int, int]:
        """Return how many means the furthest series has, and how many it needs."""
        known = (~np.isnan(self.means)).sum(axis=1)
        return int(known.max(initial=0)), self._number

    def rewind(self, step: int) -> None:
        """Forget the blocks that ended after a step, and the open one."""
        later = (self.ends > step).sum(axis=1)
        for row in np.flatnonzero(later).tolist():
            kept = self._number - int(later[row])
            for array in (self.means, self.ends):
                array[row, self._number - kept :] = array[row, :kept].copy()
                array[row, : self._number - kept] = np.nan
        self._restart()

    def forget(self) -> None:
        """Forget everything."""
        self.means.fill(np.nan)
        self.ends.fill(np.nan)
        self._restart()

    def _restart(self) -> None:
        self._clock[:] = -1
        self._sum.fill(0)
        self._count.fill(0)

    def state(self) -> State:
        """Return the arrays."""
        return {
            "clock": self._clock,
            "sum": self._sum,
            "count": self._count,
            "means": self.means,
            "ends": self.ends,
        }

    def load(self, state: State) -> None:
        """Take over the arrays.

        Raises:
            KeyError: An array is missing.
            ValueError: The number of blocks is another one.
        """
        means = np.array(state["means"], np.float64)
        if means.ndim != 2 or means.shape[1] != self._number:
            raise ValueError(f"blocks have shape {means.shape}; their number is {self._number}")
        self.means = means
        self.ends = np.array(state["ends"], np.float64)
        self._clock = np.array(state["clock"], np.int64)
        self._sum = np.array(state["sum"], np.float64)
        self._count = np.array(state["count"], np.float64)


def median_of(columns: FloatArray) -> FloatArray:
    """Return the median over the last axis; NaN where one is NaN."""
    ordered = np.sort(columns, axis=-1)  # NaN sorts last
    size = columns.shape[-1]
    middle = 0.5 * (ordered[..., (size - 1) // 2] + ordered[..., size // 2])
    return np.where(np.isnan(ordered[..., -1]), np.nan, middle)
