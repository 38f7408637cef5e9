"""Samples of the lines of a panel: the live lineage and abandoned branches."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from stabilizer.protocol.queries import SeriesData
from stabilizer.protocol.runs import Branch

FloatArray: TypeAlias = npt.NDArray[np.float64]


def significant(values: FloatArray, digits: int) -> FloatArray:
    """Round to significant digits, so that a float32 is not written with 17 digits.

    Args:
        values: Any shape; non-finite values are kept.
        digits: Number of digits.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        size = np.abs(values)
        exponents = np.where(np.isfinite(size) & (size > 0), np.floor(np.log10(size)), 0.0)
        places = digits - 1 - exponents
        scale = 10.0 ** np.abs(places)
        # Only non-negative powers of ten are exact, hence two cases.
        small = np.round(values * scale) / scale
        large = np.round(values / scale) * scale
    rounded = np.where(places >= 0, small, large)
    # For the smallest and largest doubles the power itself is out of range.
    return np.where(np.isfinite(rounded), rounded, values)


def with_gaps(values: FloatArray) -> list[Any]:
    """Return an array as (nested) lists, with None for non-finite values."""
    objects = values.astype(object)
    objects[~np.isfinite(values)] = None
    gaps: list[Any] = objects.tolist()
    return gaps


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a panel."""

    series: str
    """Text form, as `SeriesKey` writes it."""
    label: str
    """Label in the legend, not escaped."""
    colour: str
    secondary: bool = False
    """On the right axis, which starts at zero."""


@dataclass(slots=True)
class Stretch:
    """Samples ordered by step."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    """Attempt of each sample."""
    num_shared: int = 0
    """Number of leading samples that belong to the live line, to connect a branch with it."""

    def add(self, data: SeriesData, first: int, last: int) -> None:
        """Append the samples [first:last] of one attempt."""
        self.steps += data.steps[first:last]
        self.values += data.values[first:last]
        self.attempts += [data.attempt] * (last - first)


@dataclass(frozen=True, slots=True)
class LineSamples:
    """Samples of a line, separated by lineage."""

    live: Stretch
    abandoned: tuple[Stretch, ...]
    """One for each attempt with abandoned samples; starts at the last live sample, if any."""

    def values(self) -> list[float]:
        """Return all values, the live ones first."""
        left = [value for stretch in self.abandoned for value in stretch.values]
        return self.live.values + left


def collect(series: str, data: Iterable[SeriesData], branches: Sequence[Branch]) -> LineSamples:
    """Combine the attempts of one series.

    Args:
        series: Text form.
        data: Samples of any series and attempts; attempts that are not in `branches` are ignored.
        branches: Lineage of the run, oldest attempt first.
    """
    by_attempt = {part.attempt: part for part in data if part.series == series}
    live = Stretch()
    abandoned = []
    for branch in branches:
        part = by_attempt.get(branch.attempt)
        if part is None:
            continue
        cut = len(part.steps)
        if branch.live_to is not None:
            cut = bisect_right(part.steps, branch.live_to)
        live.add(part, 0, cut)
        if cut < len(part.steps):
            left = Stretch(num_shared=min(cut, 1))
            left.add(part, cut - left.num_shared, len(part.steps))
            abandoned.append(left)
    return LineSamples(live, tuple(abandoned))


def drawable(values: Sequence[float], *, log: bool) -> list[float | None]:
    """Return values for plotly, to six digits; None (a gap) for those the axis cannot show."""
    array = np.asarray(values, dtype=np.float64)
    return with_gaps(significant(np.where(array > 0, array, np.nan) if log else array, 6))
