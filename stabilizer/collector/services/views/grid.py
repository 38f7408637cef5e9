"""Aggregate samples of many series into a grid: rows are series, columns are steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stabilizer.protocol.views import HeatmapColumn, HeatmapStatistic

Steps = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Samples = tuple[Steps, npt.NDArray[np.float64], Mask]
"""Steps [K], ascending; values [K, N]; mask of the selected ones [K, N]."""


def split_steps(steps: Steps, max_columns: int) -> list[HeatmapColumn]:
    """Split steps into columns of equal size; the last may be smaller.

    Args:
        steps: Ascending and distinct, shape [K].
        max_columns: Upper limit.
    """
    if not len(steps):
        return []
    width = -(-len(steps) // max_columns)
    firsts = np.arange(0, len(steps), width)
    lasts = np.minimum(firsts + width, len(steps)) - 1
    pairs = zip(steps[firsts].tolist(), steps[lasts].tolist(), strict=True)
    return [HeatmapColumn(first_step=first, last_step=last) for first, last in pairs]


class Grid:
    """Aggregates blocks of samples, added in any order, to one number per cell.

    Non-finite samples are counted and excluded from the statistic; a cell with no finite sample
    shows its last one.

    Args:
        num_rows: Number of series, R.
        columns: Buckets, ascending; C in number.
        statistic: Aggregate of the finite samples of a cell.
    """

    def __init__(
        self, num_rows: int, columns: Sequence[HeatmapColumn], statistic: HeatmapStatistic
    ) -> None:
        shape = (num_rows, len(columns))
        self._firsts = np.array([column.first_step for column in columns], np.int64)
        self._statistic = statistic
        self._finite = np.zeros(shape, np.int64)
        self.nonfinite = np.zeros(shape, np.int64)
        """Samples that are NaN or Inf, shape [R, C]."""
        self._values = np.full(shape, _START[statistic], np.float64)
        self._last_step = np.full(shape, -1, np.int64)
        self._bad_value = np.zeros(shape, np.float64)
        self._bad_step = np.full(shape, -1, np.int64)

    def add(
        self,
        rows: Sequence[int],
        steps: Steps,
        values: npt.NDArray[np.float32],
        measured: Mask | None,
    ) -> None:
        """Add samples.

        Args:
            rows: Row of each series, distinct; N in number.
            steps: Shape [K], in any order; each inside a column.
            values: Shape [K, N].
            measured: Shape [K, N]; None if everything was measured.
        """
        if not len(steps):
            return
        order = np.argsort(steps, kind="stable")
        steps, exact = steps[order], values[order].astype(np.float64)
        present = np.ones(values.shape, np.bool_) if measured is None else measured[order]
        buckets = np.searchsorted(self._firsts, steps, side="right") - 1
        starts = np.flatnonzero(np.diff(buckets, prepend=-1))
        cells = np.ix_(np.asarray(rows, np.int64), buckets[starts])
        finite = np.isfinite(exact)
        good, bad = finite & present, ~finite & present
        self._finite[cells] += np.add.reduceat(good, starts, axis=0, dtype=np.int64).T
        if bad.any():
            self.nonfinite[cells] += np.add.reduceat(bad, starts, axis=0, dtype=np.int64).T
            _keep_last((self._bad_step, self._bad_value), cells, starts, (steps, exact, bad))
        self._take(cells, starts, (steps, exact, good))

    def _take(
        self,
        cells: tuple[npt.NDArray[np.intp], ...],
        starts: npt.NDArray[np.intp],
        samples: Samples,
    ) -> None:
        if self._statistic is HeatmapStatistic.LAST:
            _keep_last((self._last_step, self._values), cells, starts, samples)
            return
        _, values, good = samples
        reduce = _REDUCE[self._statistic]
        neutral = np.where(good, values, _START[self._statistic])
        self._values[cells] = reduce(
            self._values[cells], reduce.reduceat(neutral, starts, axis=0).T
        )

    def values(self) -> tuple[npt.NDArray[np.float64], Mask]:
        """Return the values and the mask of measured cells, both [R, C]."""
        shown = self._values
        if self._statistic is HeatmapStatistic.MEAN:
            shown = shown / np.maximum(self._finite, 1)
        shown = np.where(self._finite > 0, shown, self._bad_value)
        return shown, (self._finite + self.nonfinite) > 0


def _keep_last(
    kept: tuple[Steps, npt.NDArray[np.float64]],
    cells: tuple[npt.NDArray[np.intp], ...],
    starts: npt.NDArray[np.intp],
    samples: Samples,
) -> None:
    """Keep, per cell, the selected sample of the highest step."""
    kept_steps, kept_values = kept
    steps, values, taken = samples
    indices = np.where(taken, np.arange(len(steps))[:, None], -1)
    newest = np.maximum.reduceat(indices, starts, axis=0)
    found = newest >= 0
    their_steps = np.where(found, steps[newest], -1)
    their_values = np.take_along_axis(values, newest, axis=0)
    is_newer = found.T & (kept_steps[cells] <= their_steps.T)
    kept_steps[cells] = np.where(is_newer, their_steps.T, kept_steps[cells])
    kept_values[cells] = np.where(is_newer, their_values.T, kept_values[cells])


_START = {
    HeatmapStatistic.MAX: -np.inf,
    HeatmapStatistic.MIN: np.inf,
    HeatmapStatistic.MEAN: 0.0,
    HeatmapStatistic.LAST: 0.0,
}
_REDUCE = {
    HeatmapStatistic.MAX: np.maximum,
    HeatmapStatistic.MIN: np.minimum,
    HeatmapStatistic.MEAN: np.add,
}
