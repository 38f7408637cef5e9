"""Range of the y axis of a panel; a single spike does not flatten the other values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from dashboard.figures.samples import FloatArray

TOP_STRIP: Final = 0.22
"""Fraction of the height kept free above the lines, for marks of events and spikes."""
_FOOT: Final = 0.04
_MIN_SAMPLES: Final = 8
_FENCE_SPREADS: Final = 3.0
"""Samples within this many spreads (5th to 95th percentile) beyond them are shown."""
_FENCE_RATIO: Final = 4.0
"""Or within this many times their size, so that a small step of a constant series is no spike."""
_FENCE_DECADES: Final = 3.0
"""The same on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class Span:
    """Visible range of values, in the unit of the metric."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def robust(cls, values: Sequence[float], *, log: bool) -> Self | None:
        """Return the span of all drawable values except spikes that would flatten the others.

        Args:
            values: Samples of all lines of one axis; non-finite ones are ignored, on a logarithmic
                axis also those that are not positive.
            log: Whether the axis is logarithmic.

        Returns:
            None without drawable values.
        """
        shown = _drawable(values, log)
        if not len(shown):
            return None
        scaled = np.log10(shown) if log else shown
        if len(scaled) >= _MIN_SAMPLES:
            scaled = scaled[_within_fences(scaled, log)]
        low, high = float(scaled.min()), float(scaled.max())
        return cls(10**low, 10**high, log=True) if log else cls(low, high)

    @classmethod
    def full(cls, values: Sequence[float], *, log: bool) -> Self | None:
        """Return the span of all drawable values; None without any."""
        shown = _drawable(values, log)
        return cls(float(shown.min()), float(shown.max()), log) if len(shown) else None

    def side(self, value: float) -> int:
        """Return the position of a finite value: -1 below, 0 within, 1 above.

        Values that a logarithmic axis cannot show are below.
        """
        slack = 1e-9 * max(abs(self.low), abs(self.high))
        if value > self.high + slack:
            return 1
        return -1 if value < self.low - slack or (self.log and value <= 0) else 0

    def axis_range(self) -> list[float]:
        """Return plotly's axis range (exponents on a logarithmic axis), with the free strip."""
        low, high = (
            (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        )
        if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
            room = 0.1 if self.log else max(abs(high) * 0.1, 1e-9)
            low, high = low - room, high + room
        height = (high - low) / (1 - TOP_STRIP - _FOOT)
        return [low - _FOOT * height, high + TOP_STRIP * height]


def _drawable(values: Sequence[float], log: bool) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array) & (array > 0)] if log else array[np.isfinite(array)]


def _within_fences(scaled: FloatArray, log: bool) -> npt.NDArray[np.bool_]:
    low, high = (float(part) for part in np.percentile(scaled, [5, 95]))
    reach = _FENCE_SPREADS * (high - low)
    below = max(reach, _FENCE_DECADES if log else _FENCE_RATIO * abs(low))
    above = max(reach, _FENCE_DECADES if log else _FENCE_RATIO * abs(high))
    within: npt.NDArray[np.bool_] = (scaled >= low - below) & (scaled <= high + above)
    return within
