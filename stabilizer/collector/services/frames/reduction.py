"""Thinning of samples for charts without losing spikes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
_KEPT_PER_BUCKET = 4


def reduce_extremes(values: npt.NDArray[np.float32], max_points: int | None) -> Indices:
    """Select samples that represent all.

    Buckets hold equally many samples, and each keeps its first finite minimum, its first finite
    maximum, its first non-finite sample and its last sample.

    Args:
        values: Shape [K], in the order of the chart.
        max_points: About how many to keep, at least 4; None keeps all.

    Returns:
        Indices, ascending and distinct; never more than `max_points`.
    """
    num_samples = len(values)
    if max_points is None or num_samples <= max_points:
        return np.arange(num_samples)
    num_buckets = max(1, max_points // _KEPT_PER_BUCKET)
    width = -(-num_samples // num_buckets)
    num_buckets = -(-num_samples // width)
    padded = np.full(num_buckets * width, np.nan, np.float64)
    padded[:num_samples] = values
    table = padded.reshape(num_buckets, width)
    starts = np.arange(num_buckets) * width
    finite = np.isfinite(table)
    has_finite = finite.any(axis=1)
    lowest = starts + np.where(finite, table, np.inf).argmin(axis=1)
    highest = starts + np.where(finite, table, -np.inf).argmax(axis=1)
    broken = ~finite
    broken.reshape(-1)[num_samples:] = False
    first_broken = starts + broken.argmax(axis=1)
    last = np.minimum(starts + width, num_samples) - 1
    kept = (lowest[has_finite], highest[has_finite], first_broken[broken.any(axis=1)], last)
    return np.unique(np.concatenate(kept))
