"""How far the y axis of a panel reaches: one spike of thousands must not flatten the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from dashboard.figures.samples import FloatArray

TOP_STRIP: Final = 0.22
"""Part of the panel's height kept free over the lines, for the marks of events and spikes."""
_FOOT: Final = 0.04
_MIN_SAMPLES: Final = 8
_FENCE_SPREADS: Final = 3.0
"""How many spreads (5th to 95th percentile) a sample may lie outside of them and still be shown."""
_FENCE_RATIO: Final = 4.0
"""Or how many times their size, so that a small step of a constant series is no spike."""
_FENCE_DECADES: Final = 3.0
"""The same on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class Span:
    """What of the y axis a panel shows, in the unit of the metric."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def robust(cls, values: Sequence[float], *, log: bool) -> Self | None:
        """Take in all that can be shown, except for spikes that would flatten the rest.

        Args:
            values: Samples of every line of one axis; what is not finite is left out, and on a
                logarithmic axis what is not positive.
            log: Whether the axis is logarithmic.

        Returns:
            None if nothing is left.
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
        """Take in all that can be shown; None if nothing can."""
        shown = _drawable(values, log)
        return cls(float(shown.min()), float(shown.max()), log) if len(shown) else None

    def side(self, value: float) -> int:
        """Where a finite value lies: -1 below, 0 within, 1 above.

        What a logarithmic axis cannot show lies below.
        """
        slack = 1e-9 * max(abs(self.low), abs(self.high))
        if value > self.high + slack:
            return 1
        return -1 if value < self.low - slack or (self.log and value <= 0) else 0

    def axis_range(self) -> list[float]:
        """The range in plotly's terms (exponents on a logarithmic axis), with the free strip."""
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
