"""What every figure shares: its type, its margins, its configuration."""

from __future__ import annotations

import unicodedata
from typing import Any, Final, TypeAlias

FigureDict: TypeAlias = dict[str, Any]
"""A figure, or a part of one, in plotly's JSON form; numbers finite, gaps as None."""

CONFIG: Final[dict[str, Any]] = {
    "displayModeBar": False,
    "doubleClick": False,  # codespell:ignore doubleclick
    "scrollZoom": False,
    "showTips": False,
    "responsive": True,
}
"""For `dcc.Graph(config=CONFIG)`. `assets/charts.js` answers double clicks for all charts."""

MARGIN: Final = {"l": 64, "r": 16}
"""In pixels; the same in every chart, so that one crosshair passes through all of them."""

FONT_SIZE: Final = 11


def base_layout(height: int, *, top: int) -> FigureDict:
    """Layout of a chart without axes.

    Args:
        height: Of the whole chart, in pixels.
        top: Margin over the plot, in pixels.
    """
    return {
        "height": height,
        "autosize": True,
        "margin": {**MARGIN, "t": top, "b": 26, "pad": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": FONT_SIZE},
        "dragmode": "zoom",
        # assets/charts.js tells what lies under the pointer, in all charts at once.
        "hovermode": False,
        "showlegend": False,
        "uirevision": "chart",
    }


def step_axis(x_range: tuple[float, float]) -> FigureDict:
    """The axis of steps: the only one that can be zoomed.

    Args:
        x_range: First and last step shown. Its own `uirevision`, so that a new range is taken
            over, while what was hidden by way of the legend stays hidden.
    """
    first, last = x_range
    return {
        "type": "linear",
        "range": [first, last],
        "uirevision": f"{first:g}:{last:g}",
        "tickformat": ",~f",
        "nticks": 7,
        "showgrid": False,
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
    }


def note(text: str) -> FigureDict:
    """A sentence in the middle of a chart that has nothing to draw."""
    return {
        "text": text,
        "xref": "paper",
        "yref": "paper",
        "x": 0.5,
        "y": 0.5,
        "showarrow": False,
    }


_HEIGHT = 190


def empty_figure(text: str = "") -> FigureDict:
    """Build a figure without lines; the text says why there are none."""
    layout = base_layout(_HEIGHT, top=6)
    layout["xaxis"] = {"visible": False}
    layout["yaxis"] = {"visible": False}
    if text:
        layout["annotations"] = [note(text)]
    return {"data": [], "layout": layout}


MAX_TEXT: Final = 240


def escape(text: str, limit: int = MAX_TEXT) -> str:
    """Make text safe for plotly, which reads tags and entities in any text; cut like `plain`."""
    return plain(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def plain(text: str, limit: int = MAX_TEXT) -> str:
    """Cut text from jobs and people to a sane length, on one line.

    Control and format characters become spaces, so that nothing can turn the direction of a note
    or make lines of its own.
    """
    visible = (" " if unicodedata.category(sign)[0] in "CZ" else sign for sign in text)
    line = " ".join("".join(visible).split())
    return line if len(line) <= limit else line[: limit - 3].rstrip() + "..."
