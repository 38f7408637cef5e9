"""A chart that has nothing to draw yet."""

from __future__ import annotations

from dashboard.figures.figure import FigureDict, base_layout, note

_HEIGHT = 190


def empty_figure(text: str = "") -> FigureDict:
    """Build a figure without lines; the text says why there are none."""
    layout = base_layout(_HEIGHT, top=6)
    layout["xaxis"] = {"visible": False}
    layout["yaxis"] = {"visible": False}
    if text:
        layout["annotations"] = [note(text)]
    return {"data": [], "layout": layout}
