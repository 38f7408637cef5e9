import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabilizer.collector.services.frames.reduction import reduce_extremes

VALUES = st.lists(st.floats(width=32, allow_nan=True), max_size=300)


def test_few_are_all_kept():
    assert reduce_extremes(np.zeros(10, np.float32), 10).tolist() == list(range(10))
    assert reduce_extremes(np.zeros(10, np.float32), None).tolist() == list(range(10))
    assert reduce_extremes(np.zeros(0, np.float32), 4).tolist() == []


@given(values=VALUES, max_points=st.integers(4, 80))
def test_extremes_survive_and_no_more_is_kept_than_asked(values, max_points):
    values = np.array(values, np.float32)
    kept = reduce_extremes(values, max_points)
    assert len(kept) <= max(max_points, 0)
    assert (np.diff(kept) > 0).all()
    finite = values[np.isfinite(values)]
    if len(finite):
        shown = values[kept][np.isfinite(values[kept])]
        assert (shown.min(), shown.max()) == (finite.min(), finite.max())
    assert np.isfinite(values).all() == np.isfinite(values[kept]).all()
    if len(values):
        assert kept[-1] == len(values) - 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_but_broken_samples(value):
    values = np.full(100, value, np.float32)
    kept = reduce_extremes(values, 8)
    assert kept.tolist() == [0, 49, 50, 99]


def test_buckets_keep_first_minimum_first_maximum_first_broken_and_last():
    values = np.array([0, 5, -5, 5, -5, np.nan, np.inf, 1, 0, 2] * 2, np.float32)
    assert reduce_extremes(values, 8).tolist() == [1, 2, 5, 9, 11, 12, 15, 19]
