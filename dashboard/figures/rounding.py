"""Numbers on their way to the browser: no longer than they must be, and gaps as JSON knows them."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]


def significant(values: FloatArray, digits: int) -> FloatArray:
    """Round to significant digits, so that a float32 is not written with the 17 of a double.

    Args:
        values: Any shape; what is not finite stays as it is.
        digits: How many to keep.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        size = np.abs(values)
        exponents = np.where(np.isfinite(size) & (size > 0), np.floor(np.log10(size)), 0.0)
        places = digits - 1 - exponents
        scale = 10.0 ** np.abs(places)
        # Powers of ten are exact as whole numbers only, hence two ways.
        small = np.round(values * scale) / scale
        large = np.round(values / scale) * scale
    rounded = np.where(places >= 0, small, large)
    # Of the least and largest doubles the power itself is out of range.
    return np.where(np.isfinite(rounded), rounded, values)


def with_gaps(values: FloatArray) -> list[Any]:
    """Write an array as (nested) lists, with None for what is not finite."""
    objects = values.astype(object)
    objects[~np.isfinite(values)] = None
    gaps: list[Any] = objects.tolist()
    return gaps
