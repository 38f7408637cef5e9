import math
from datetime import UTC, datetime, timedelta, timezone

import pytest

from dashboard.formatting import (
    ago,
    change,
    clock,
    counted,
    day,
    duration,
    exact,
    left,
    moment,
    number,
)

NOW = datetime(2025, 5, 30, 14, 3, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.5, "0.5"),
        (3.2e-05, "3.2e-05"),
        (2.34567, "2.346"),
        (-12345.6, "-12,346"),
        (1e9, "1e+09"),
        (math.nan, "NaN"),
        (math.inf, "Inf"),
        (-math.inf, "-Inf"),
        (None, "not measured"),
    ],
)
def test_number_is_short_and_shows_what_is_not_finite(value, text):
    assert number(value) == text


def test_what_was_set_is_not_rounded():
    assert exact(0.123456) == "0.123456"
    assert exact(math.nan) == "NaN"


def test_one_step_is_not_two():
    assert counted(1, "step") == "1 step"
    assert counted(0, "step") == "0 steps"
    assert counted(12800, "sample") == "12,800 samples"


def test_change_survives_nan_and_nothing():
    assert change(3e-4, math.nan) == "0.0003 \u2192 NaN"
    assert change(None, 0.5) == "not measured \u2192 0.5"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.42 s"),
        (42, "42 s"),
        (59.7, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (7200, "2 h"),
        (90000, "1 d 1 h"),
        (math.nan, "unknown time"),
        (math.inf, "unknown time"),
        (None, "unknown time"),
        (-3, "0 s"),
    ],
)
def test_duration_has_its_two_largest_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("past", "text"),
    [
        (timedelta(seconds=1), "just now"),
        (timedelta(seconds=-90), "just now"),
        (timedelta(seconds=42), "42 s ago"),
        (timedelta(seconds=200), "3 min ago"),
        (timedelta(hours=26), "1 d ago"),
    ],
)
def test_age_of_a_past_time(past, text):
    assert ago(NOW - past, NOW) == text


def test_time_left_ends():
    assert left(NOW + timedelta(minutes=8, seconds=59), NOW) == "8 min"
    assert left(NOW + timedelta(milliseconds=1), NOW) == "1 s"
    assert left(NOW, NOW) is None


def test_times_are_converted_to_utc():
    berlin = NOW.astimezone(timezone(timedelta(hours=2)))
    assert clock(berlin) == clock(NOW.replace(tzinfo=None)) == "14:03"
    assert moment(berlin) == "2025-05-30 14:03:05 UTC"
    assert ago(NOW.replace(tzinfo=None) - timedelta(minutes=3), berlin) == "3 min ago"


def test_days_are_named_near_now():
    assert day(NOW, NOW) == "today"
    assert day(NOW - timedelta(hours=15), NOW) == "yesterday"
    assert day(NOW - timedelta(days=9), NOW) == "2025-05-21"
