import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.figures.samples import significant, with_gaps


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (2.3456789493560791, 2.34568),
        (-0.000123456789, -0.000123457),
        (1234567.89, 1234570.0),
        (0.0, 0.0),
        (1e300, 1e300),
        (5e-324, 5e-324),
    ],
)
def test_a_value_keeps_six_digits(value, rounded):
    assert significant(np.array([value]), 6)[0] == rounded


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=20))
def test_rounding_moves_no_value_by_more_than_half_a_digit(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rounded = significant(np.array(values), 4)
    for before, after in zip(values, rounded.tolist(), strict=True):
        if math.isfinite(before):
            assert after == pytest.approx(before, rel=5.1e-4, abs=1e-300)
        else:
            assert repr(after) == repr(before)


def test_what_is_not_finite_becomes_a_gap():
    assert with_gaps(np.array([[1.0, math.nan], [math.inf, -2.0]])) == [[1.0, None], [None, -2.0]]
