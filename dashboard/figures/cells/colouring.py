"""What the colour of a heatmap's cell says, and how far the scale reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from dashboard.figures.palette import DIVERGING, SEQUENTIAL
from dashboard.figures.rounding import FloatArray, significant
from dashboard.words.amounts import number
from stabilizer.protocol.metrics import Metric

_CLIP: Final = 3.0
"""log2 of the factor at which the relative colouring ends: 1/8 and 8."""
FIXED_RANGES: Final[dict[str, tuple[float, float]]] = {
    Metric.ATTENTION_ENTROPY: (0.0, 1.0),
    Metric.GATE: (-1.0, 1.0),
}
"""Metrics whose values have a meaning of their own."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Colours of the cells of a heatmap."""

    z: FloatArray
    """Shape [rows, columns]; NaN where there is no colour."""
    values: FloatArray
    """Shape [rows, columns]; NaN for what is not finite."""
    ends: tuple[float, float]
    """z at the ends of the scale."""
    colours: Sequence[tuple[float, str]]
    ticks: Sequence[tuple[float, str]]
    """z and its text, for the colour bar."""
    medians: list[float | None] | None = None
    """What each row was compared with; None if it was not."""


def relative_scale(values: FloatArray) -> Scale:
    """Colour each cell by how many times its row's median it is: explosions, at whatever scale.

    Args:
        values: Shape [rows, columns]; what is not finite gets no colour.
    """
    finite = np.where(np.isfinite(values), values, np.nan)
    medians = [_median(row) for row in finite]
    factors = np.stack([_factors(row, one) for row, one in zip(finite, medians, strict=True)])
    with np.errstate(divide="ignore"):
        z = np.clip(np.log2(factors), -_CLIP, _CLIP)
    ticks = [(-3, "1/8"), (-1, "1/2"), (0, "median"), (1, "2x"), (3, "8x")]
    return Scale(z, finite, (-_CLIP, _CLIP), DIVERGING, ticks, medians)


def _median(row: FloatArray) -> float | None:
    known = row[np.isfinite(row)]
    return float(significant(np.median(known, keepdims=True), 6)[0]) if len(known) else None


def _factors(row: FloatArray, middle: float | None) -> FloatArray:
    """How many times the row's median each value is; 0 where its sign is another.

    In a row whose median is 0 every other value is at the end of the scale.
    """
    if not middle:
        return np.where(np.isnan(row), np.nan, np.where(row == 0, 1.0, 2**_CLIP))
    with np.errstate(over="ignore"):
        return np.where(np.isnan(row), np.nan, np.maximum(row / middle, 0.0))


def absolute_scale(values: FloatArray, metric: str) -> Scale:
    """Colour each cell by its value: by powers of ten, unless that says nothing of the metric.

    Args:
        values: Shape [rows, columns]; what is not finite gets no colour.
        metric: Name; those of `FIXED_RANGES` always have the same scale.
    """
    finite = np.where(np.isfinite(values), values, np.nan)
    if metric in FIXED_RANGES:
        return _linear(finite, FIXED_RANGES[metric])
    known = finite[np.isfinite(finite)]
    if len(known) and known.min() >= 0 < known.max():
        return _logarithmic(finite, known)
    reach = float(np.abs(known).max()) if len(known) else 0.0
    return _linear(finite, (-reach or -1.0, reach or 1.0))


def _linear(values: FloatArray, ends: tuple[float, float]) -> Scale:
    low, high = ends
    ticks = [(at, number(at)) for at in (low, (low + high) / 2, high)]
    colours = DIVERGING if low < 0 else SEQUENTIAL
    return Scale(values, values, ends, colours, ticks)


def _logarithmic(values: FloatArray, known: FloatArray) -> Scale:
    """By powers of ten; a zero has the colour of the least value that is none."""
    low, high = float(np.log10(known[known > 0].min())), float(np.log10(known.max()))
    with np.errstate(divide="ignore"):
        z = np.maximum(np.log10(values), low)
    ends = (low, high) if high > low else (low - 1, high)
    ticks = [(at, number(10**at)) for at in (ends[0], sum(ends) / 2, ends[1])]
    return Scale(z, values, ends, SEQUENTIAL, ticks)
