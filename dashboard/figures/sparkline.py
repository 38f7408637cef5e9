"""Sparkline of the loss as an inline SVG image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote
from xml.sax.saxutils import escape

from dashboard.figures.palette import GREY, NONFINITE, SKY
from dashboard.figures.span import Span
from dashboard.formatting import number
from stabilizer.protocol.views import Sparkline

WIDTH, HEIGHT = 120, 28
"""Pixels."""
_PAD: Final = 3.0
_MARK: Final = 5.0
"""Length of the mark of a NaN or Inf in pixels, from the top."""


def sparkline_uri(sparkline: Sparkline | None) -> str:
    """Draw a sparkline as a data URI, for the `src` of an image.

    Non-finite losses break the line and get a mark at the top; spikes that would flatten the rest
    are clipped. The colours work on light and dark backgrounds.
    """
    return "data:image/svg+xml," + quote(_svg(sparkline), safe="/:=' ")


def sparkline_text(sparkline: Sparkline | None) -> str:
    """Return the alternative text of a sparkline."""
    if sparkline is None or not sparkline.values:
        return "no loss yet"
    steps, values = sparkline.steps, sparkline.values
    text = f"loss {number(values[-1])} at step {steps[-1]:,}"
    if len(values) > 1:
        text += f", {number(values[0])} at step {steps[0]:,}"
    lost = sum(not math.isfinite(value) for value in values)
    return text + (f"; {lost:,} of {len(values):,} points are NaN or Inf" if lost else "")


def _svg(sparkline: Sparkline | None) -> str:
    title = escape(sparkline_text(sparkline))
    body = "" if sparkline is None or not sparkline.values else _drawing(sparkline)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' role='img' width='{WIDTH}' height='{HEIGHT}'"
        f" viewBox='0 0 {WIDTH} {HEIGHT}'><title>{title}</title>{body}</svg>"
    )


def _drawing(sparkline: Sparkline) -> str:
    xs = _places(sparkline.steps)
    ys = _heights(sparkline.values)
    parts = [
        f"<path d='{path}' fill='none' stroke='{GREY}' stroke-width='1.5'"
        " stroke-linejoin='round' stroke-linecap='round'/>"
        for path in [_path(xs, ys)]
        if path
    ]
    lost = sorted({round(x) for x, y in zip(xs, ys, strict=True) if y is None})
    if lost:
        marks = "".join(f"M{x} 0V{_MARK:g}" for x in lost)
        parts.append(f"<path d='{marks}' stroke='{NONFINITE}' stroke-width='1.5'/>")
    if ys[-1] is not None:
        parts.append(f"<circle cx='{xs[-1]:.1f}' cy='{ys[-1]:.1f}' r='2.2' fill='{SKY}'/>")
    return "".join(parts)


def _places(steps: Sequence[int]) -> list[float]:
    first, last = steps[0], steps[-1]
    width = WIDTH - 2 * _PAD
    if first == last:
        return [_PAD + width] * len(steps)
    return [_PAD + width * (step - first) / (last - first) for step in steps]


def _heights(values: Sequence[float]) -> list[float | None]:
    span = Span.robust(values, log=False)
    if span is None:
        return [None] * len(values)
    low, height = span.low, span.high - span.low
    inner = HEIGHT - 2 * _PAD
    places: list[float | None] = []
    for value in values:
        if not math.isfinite(value):
            places.append(None)
            continue
        part = (value - low) / height if height > 0 else 0.5
        places.append(HEIGHT - _PAD - inner * min(1.0, max(0.0, part)))
    return places


def _path(xs: Sequence[float], ys: Sequence[float | None]) -> str:
    commands = []
    is_open = False
    for x, y in zip(xs, ys, strict=True):
        if y is not None:
            # `h0` draws a dot for a lone point.
            commands.append(f"L{x:.1f} {y:.1f}" if is_open else f"M{x:.1f} {y:.1f}h0")
        is_open = y is not None
    return "".join(commands)
