import math

import numpy as np
import pytest

from dashboard.figures.span import TOP_STRIP, Span

NOISE = np.random.default_rng(0).normal(2.5, 0.05, 500)


def robust(values, log=False):
    return Span.robust(list(values), log=log)


def test_a_spike_of_thousands_does_not_flatten_the_rest():
    span = robust([*NOISE, 1e6])
    assert span.high == NOISE.max()
    assert span.side(1e6) == 1
    assert span.side(2.5) == 0
    assert Span.full([*NOISE, 1e6], log=False).high == 1e6


def test_the_beginning_of_a_long_run_is_shown():
    assert robust([11.0, *NOISE]).high == 11.0


def test_a_rise_that_many_samples_share_is_shown():
    assert robust([*NOISE, *np.linspace(3, 400, 60)]).high == 400


def test_a_small_step_of_a_constant_series_is_no_spike():
    assert robust([1.0] * 500 + [0.75] * 3).low == 0.75


def test_a_collapse_far_below_zero_is_a_spike_too():
    assert robust([*NOISE, -1e5]).side(-1e5) == -1


def test_few_samples_are_all_shown():
    assert robust([3.0, 1e6]).high == 1e6


def test_nan_and_inf_are_ignored():
    assert robust([1.0, math.nan, math.inf, 2.0]) == Span(1.0, 2.0)
    assert robust([math.nan, math.inf]) is None
    assert robust([]) is None
    assert Span.full([math.nan], log=False) is None


def test_a_logarithmic_axis_takes_in_positive_values_only():
    span = robust([0.0, -1.0, 0.1, 10.0], log=True)
    assert (span.low, span.high) == (pytest.approx(0.1), pytest.approx(10))
    assert span.side(0.0) == span.side(-1.0) == -1
    assert robust([0.0, -1.0], log=True) is None


def test_a_logarithmic_axis_shows_decades_of_explosion_and_marks_a_lone_one_beyond():
    values = np.exp(np.random.default_rng(1).normal(0, 0.3, 500))
    assert robust([*values, 500.0], log=True).high == pytest.approx(500)
    assert robust([*values, 1e9], log=True).side(1e9) == 1


@pytest.mark.parametrize("span", [Span(2, 4), Span(0.01, 100, log=True), Span(-3, -1)])
def test_the_strip_at_the_top_stays_free(span):
    low, high = span.axis_range()
    inner = [math.log10(end) if span.log else end for end in (span.low, span.high)]
    assert low < inner[0]
    assert (high - inner[1]) / (high - low) == pytest.approx(TOP_STRIP)


@pytest.mark.parametrize("value", [0.0, 1.0, -5.0, 1e-30])
def test_a_constant_series_has_a_range_of_its_own(value):
    low, high = Span(value, value).axis_range()
    assert low < value < high


def test_a_constant_series_on_a_logarithmic_axis_has_one_too():
    low, high = Span(10.0, 10.0, log=True).axis_range()
    assert low < 1 < high
