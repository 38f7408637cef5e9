"""A trace keeps what a chart of the whole series would show."""

import random

import numpy as np
import pytest

from stabilizer.collector.services.views.sparklines import MAX_SAMPLES, Trace


def series(number, seed=0):
    rng = np.random.default_rng(seed)
    return np.arange(1, number + 1), rng.normal(2.0, 0.1, number).astype(np.float32)


def fill(trace, steps, values, width):
    for start in range(0, len(steps), width):
        trace.add(steps[start : start + width], values[start : start + width])


def test_a_short_series_is_kept_as_it_is():
    trace, (steps, values) = Trace(), series(50)
    fill(trace, steps, values, 7)
    found = trace.points(64)
    assert np.array_equal(found[0], steps)
    assert np.array_equal(found[1], values)


@pytest.mark.parametrize("width", [1, 16, 5000])
def test_a_long_series_keeps_its_extremes_in_bounded_memory(width):
    steps, values = series(20_000)
    values[[3_333, 9_999]] = 900.0, -900.0
    values[[5_000, 17_000]] = np.nan, np.inf
    trace = Trace()
    fill(trace, steps, values, width)
    assert len(trace) <= MAX_SAMPLES + width
    found, shown = trace.points(64)
    assert len(found) <= 64
    assert {3_334, 10_000, 5_001, 17_001, 20_000} <= set(found.tolist())
    assert (np.diff(found) > 0).all()
    assert np.array_equal(shown, values[found - 1], equal_nan=True)


@pytest.mark.parametrize(("seed", "width"), [(1, 1), (2, 7), (3, 128), (4, 1500)])
def test_neither_order_nor_repetition_matters(seed, width):
    chance = random.Random(seed)
    steps, values = series(5_000, seed=3)
    values[[100, 4_000]] = np.nan, 50.0
    parts = [slice(i, i + width) for i in range(0, len(steps), width)]
    ordered = Trace()
    for part in parts:
        ordered.add(steps[part], values[part])
    shuffled = Trace()
    for part in chance.sample(parts, len(parts)) + chance.choices(parts, k=3):
        shuffled.add(steps[part], values[part])
    shuffled._thin()
    ordered._thin()
    assert np.array_equal(shuffled._steps, ordered._steps)
    assert np.array_equal(shuffled._values, ordered._values, equal_nan=True)


def test_what_was_cut_off_and_added_again_is_as_if_it_had_never_been_longer():
    steps, values = series(10_000, seed=5)
    values[6_010] = 70.0  # before the cut, and lower than what comes behind it
    values[6_100:] = 99.0
    trace = Trace()
    fill(trace, steps, values, 100)
    first = trace.cut(6_051)
    assert first <= 6_051
    again = (steps >= first) & (steps <= 6_050)
    trace.add(steps[again], values[again])
    found, shown = trace.points(64)
    assert (found[-1], shown.max()) == (6_050, 70.0)


def test_of_two_samples_at_one_step_the_later_given_counts():
    trace = Trace()
    trace.add(np.array([1, 2]), np.array([1.0, 2.0], np.float32))
    trace.add(np.array([2]), np.array([9.0], np.float32))
    assert trace.points(64)[1].tolist() == [1.0, 9.0]


def test_nothing_is_nothing():
    assert len(Trace().points(64)[0]) == 0
    assert Trace().cut(5) == 5


def test_nothing_but_nan_is_shown_as_nan():
    trace = Trace()
    trace.add(np.arange(3000), np.full(3000, np.nan, np.float32))
    steps, values = trace.points(64)
    assert 0 < len(steps) <= 64
    assert np.isnan(values).all()
