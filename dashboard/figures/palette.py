"""Colours with a meaning, distinguishable with any colour vision, on light and dark backgrounds.

The palette is that of Okabe and Ito. Its orange and sky blue are too pale for thin lines on white,
so both are darkened to a contrast of 3:1 with white (`ORANGE`, `SKY`). The others have that
contrast unchanged, with white and with the dark background `#1a1b1e`.

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
"""Colours of lines, in this order. Vermilion is reserved for divergence."""

SEVERITY_COLOURS: Final = {
    Severity.NOTICE: SKY,
    Severity.PRECURSOR: ORANGE,
    Severity.DIVERGENCE: VERMILION,
}

NONFINITE: Final = "#FF00FF"
"""NaN and Inf in every figure; not used by any line or scale."""

DIVERGING: Final = (
    (0.0, BLUE),
    (0.5, "rgba(128,128,128,0.18)"),
    (1.0, VERMILION),
)
"""From below the middle to above it. The middle is translucent, for any background."""

SEQUENTIAL: Final = (
    (0.0, "rgba(0,114,178,0.08)"),
    (1.0, "rgba(0,114,178,1)"),
)
"""From low to high, likewise translucent."""


def line_colour(index: int) -> str:
    """Return the colour of a line by its index, cyclically."""
    return LINE_COLOURS[index % len(LINE_COLOURS)]


def veil(colour: str, opacity: float) -> str:
    """Add an opacity to a colour.

    Args:
        colour: `#RRGGBB`.
        opacity: From 0 (transparent) to 1.
    """
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"
