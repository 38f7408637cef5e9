"""Format numbers, durations and times. NaN and Inf are shown as such."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Final

MINUTE: Final = 60
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
_JUST_NOW_SECONDS: Final = 5
ARROW: Final = "\N{RIGHTWARDS ARROW}"
"""Between the old and the new value."""


def count(value: int) -> str:
    """Format an integer with thousands separators: `1,234`."""
    return f"{value:,}"


def counted(value: int, noun: str) -> str:
    """Format a count with its noun: `1 step`, `1,234 steps`."""
    return f"{count(value)} {noun}" if value == 1 else f"{count(value)} {noun}s"


def number(value: float | None, *, unknown: str = "not measured") -> str:
    """Format a measured value to four digits: `0.5`, `3.2e-05`, `12,346`, `NaN`, `-Inf`.

    Args:
        value: The value; None if there is none.
        unknown: Text for None.
    """
    if value is None:
        return unknown
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Inf" if value > 0 else "-Inf"
    if 1e4 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def exact(value: float) -> str:
    """Format a configured number without rounding: `0.75`, `1e-06`."""
    return f"{value:.15g}" if math.isfinite(value) else number(value)


def change(before: float | None, after: float | None) -> str:
    """Format an old and a new value: `0.0003 -> 0.00015`."""
    return f"{number(before)} {ARROW} {number(after)}"


def duration(seconds: float | None) -> str:
    """Format a duration in its two largest units: `42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None or not math.isfinite(seconds):
        return "unknown time"
    if seconds < 10:
        return f"{max(seconds, 0.0):.2g} s"
    whole = round(seconds)
    for size, unit, small_size, small_unit in _UNITS:
        if whole >= size:
            return _in_two(whole, (size, unit), (small_size, small_unit))
    return f"{whole} s"


_UNITS: Final = (
    (DAY, "d", HOUR, "h"),
    (HOUR, "h", MINUTE, "min"),
    (MINUTE, "min", 1, "s"),
)


def _in_two(seconds: int, great: tuple[int, str], small: tuple[int, str]) -> str:
    whole, rest = divmod(seconds, great[0])
    text = f"{whole} {great[1]}"
    return f"{text} {rest // small[0]} {small[1]}" if rest >= small[0] else text


def ago(at: datetime, now: datetime) -> str:
    """Format an age: `just now`, `42 s ago`, `3 min ago`.

    Times slightly in the future, by another machine's clock, are `just now`.
    """
    seconds = (utc(now) - utc(at)).total_seconds()
    if seconds < _JUST_NOW_SECONDS:
        return "just now"
    return f"{_roughly(seconds)} ago"


def left(until: datetime, now: datetime) -> str | None:
    """Format the time left: `8 min`; None if it has passed."""
    remaining = utc(until) - utc(now)
    return None if remaining <= timedelta(0) else _roughly(remaining.total_seconds())


def _roughly(seconds: float) -> str:
    for size, unit in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(1, int(seconds))} s"


def utc(at: datetime) -> datetime:
    """Convert a time to UTC; a naive one is taken as UTC."""
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def clock(at: datetime) -> str:
    """Format the time of day: `14:03`."""
    return f"{utc(at):%H:%M}"


def day(at: datetime, now: datetime) -> str:
    """Format a day: `today`, `yesterday`, `2025-05-30`."""
    date = utc(at).date()
    passed = (utc(now).date() - date).days
    return {0: "today", 1: "yesterday"}.get(passed, date.isoformat())


def moment(at: datetime) -> str:
    """Format a time in full: `2025-05-30 14:03:05 UTC`."""
    return f"{utc(at):%Y-%m-%d %H:%M:%S} UTC"
