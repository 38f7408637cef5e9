"""Colours that mean something, told apart by every kind of colour vision and read on both grounds.

They are Okabe and Ito's. Their orange and sky blue are too pale for thin lines on white, so both
are darkened to a contrast of 3:1 with white (`ORANGE`, `SKY`); all others have it as they are, with
white and with the dark ground `#1a1b1e`.

Source: Okabe and Ito (2008), Color Universal Design; WCAG 2.2, 1.4.11 for the ratio.
"""

from __future__ import annotations

from typing import Final

from stabilizer.protocol.decisions import Severity

BLUE: Final = "#0072B2"
ORANGE: Final = "#C58800"
GREEN: Final = "#009E73"
PURPLE: Final = "#CC79A7"
SKY: Final = "#3A9BD5"
VERMILION: Final = "#D55E00"
GREY: Final = "#868E96"

LINE_COLOURS: Final = (BLUE, ORANGE, GREEN, PURPLE, SKY)
"""Of the lines of a panel, in this order. Vermilion is kept for what is wrong."""

SEVERITY_COLOURS: Final = {
    Severity.NOTICE: SKY,
    Severity.PRECURSOR: ORANGE,
    Severity.DIVERGENCE: VERMILION,
}

NONFINITE: Final = "#FF00FF"
"""NaN and Inf, in every figure: no line and no scale contains it."""

DIVERGING: Final = (
    (0.0, BLUE),
    (0.5, "rgba(128,128,128,0.18)"),
    (1.0, VERMILION),
)
"""From below the middle to above it. The middle is a veil over the ground, whatever its colour."""

SEQUENTIAL: Final = (
    (0.0, "rgba(0,114,178,0.08)"),
    (1.0, "rgba(0,114,178,1)"),
)
"""From little to much, by the same veil."""


def line_colour(index: int) -> str:
    """Colour of a panel's line by its index; begins anew when they are used up."""
    return LINE_COLOURS[index % len(LINE_COLOURS)]


def veil(colour: str, opacity: float) -> str:
    """Make a colour (`#RRGGBB`) see-through.

    Args:
        colour: Six hexadecimal digits behind a `#`.
        opacity: From 0 (nothing) to 1.
    """
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"
