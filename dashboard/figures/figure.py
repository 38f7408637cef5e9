"""Parts of every figure: type, layout, configuration, safe text."""

from __future__ import annotations

import unicodedata
from typing import Any, Final, TypeAlias

FigureDict: TypeAlias = dict[str, Any]
"""A figure or a part of one in plotly's JSON form; numbers are finite, gaps are None."""

CONFIG: Final[dict[str, Any]] = {
    "displayModeBar": False,
    "doubleClick": False,  # codespell:ignore doubleclick
    "scrollZoom": False,
    "showTips": False,
    "responsive": True,
}
"""For `dcc.Graph(config=CONFIG)`. `assets/charts.js` handles double clicks."""

MARGIN: Final = {"l": 64, "r": 16}
"""In pixels; the same in every chart, so that their steps are aligned."""

FONT_SIZE: Final = 11


def base_layout(height: int, *, top: int) -> FigureDict:
    """Return the layout of a chart, without axes.

    Args:
        height: Height of the chart in pixels.
        top: Margin above the plot in pixels.
    """
    return {
        "height": height,
        "autosize": True,
        "margin": {**MARGIN, "t": top, "b": 26, "pad": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": FONT_SIZE},
        "dragmode": "zoom",
        # assets/charts.js shows tooltips, for all charts at once.
        "hovermode": False,
        "showlegend": False,
        "uirevision": "chart",
    }


def step_axis(x_range: tuple[float, float]) -> FigureDict:
    """Return the axis of steps, the only one that can be zoomed.

    Args:
        x_range: First and last step shown. It sets the `uirevision` of the axis, so that a new
            range is adopted while lines hidden in the legend stay hidden.
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
    """Return a text in the middle of an empty chart."""
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
    """Build a figure without lines; the text says why."""
    layout = base_layout(_HEIGHT, top=6)
    layout["xaxis"] = {"visible": False}
    layout["yaxis"] = {"visible": False}
    if text:
        layout["annotations"] = [note(text)]
    return {"data": [], "layout": layout}


MAX_TEXT: Final = 240


def escape(text: str, limit: int = MAX_TEXT) -> str:
    """Escape text for plotly, which parses tags and entities in any text; cut like `plain`."""
    return plain(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def plain(text: str, limit: int = MAX_TEXT) -> str:
    """Cut text from jobs and users to a limited length, on one line.

    Control and format characters become spaces, so that text cannot change its direction or break
    lines.
    """
    visible = (" " if unicodedata.category(char)[0] in "CZ" else char for char in text)
    line = " ".join("".join(visible).split())
    return line if len(line) <= limit else line[: limit - 3].rstrip() + "..."
