"""A metric over depth and time: one row a series, the bottom of the model below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from itertools import groupby
from typing import Final

import numpy as np

from dashboard.figures.cells.colouring import (
    FIXED_RANGES,
    Scale,
    absolute_scale,
    relative_scale,
)
from dashboard.figures.cells.columns import Columns, lay_out_columns
from dashboard.figures.figure import FONT_SIZE, MARGIN, FigureDict, base_layout, note, step_axis
from dashboard.figures.notes import escape, plain
from dashboard.figures.palette import GREY, NONFINITE, veil
from dashboard.figures.rounding import significant, with_gaps
from dashboard.figures.scene import Scene, meta_of
from stabilizer.protocol.series import SeriesKey
from stabilizer.protocol.views import Heatmap, HeatmapRow

MAX_HEIGHT: Final = 900
"""Pixels."""
_TOP, _BOTTOM = 34, 26
_ROOMY, _LEAST = 16, 10
"""Pixels of a row while there are few of them, and while there are many."""
_FEW: Final = 30
_LABEL_HEIGHT: Final = 10
_LETTER: Final = 6.0
"""Pixels of a letter of a tower's name, with air around."""
_SHORT_TOWERS: Final = {"cross_attention": "cross", "resampler": "resamp."}


class Colouring(StrEnum):
    """What the colour of a cell means."""

    RELATIVE = "relative"
    """How many times the row's own median: explosions and collapses, whatever the scale."""
    ABSOLUTE = "absolute"
    """The value itself."""


def default_colouring(metric: str) -> Colouring:
    """Pick the colouring that says most: absolute only where values have a fixed range."""
    return Colouring.ABSOLUTE if metric in FIXED_RANGES else Colouring.RELATIVE


def heatmap_chart(
    heatmap: Heatmap, scene: Scene, *, colouring: Colouring | None = None
) -> FigureDict:
    """Draw a heatmap whose steps lie under those of the panels.

    Cells with NaN or Inf have a colour that no scale contains; what was not measured has none.

    Args:
        heatmap: Rows from the bottom of the model to its top.
        scene: What the panels over it share; gives the range of steps.
        colouring: None takes the metric's default.
    """
    rows = heatmap.rows
    height, row_height = _heights(len(rows))
    layout = base_layout(height, top=_TOP)
    layout["xaxis"] = step_axis(scene.x_range)
    layout["yaxis"] = _row_axis(rows, row_height)
    layout["shapes"], layout["annotations"] = _towers(rows, row_height)
    layout["meta"] = meta_of(scene)
    if not rows or not heatmap.columns:
        layout["yaxis"]["visible"] = False
        layout["annotations"] = [note("nothing was measured in these steps")]
        return {"data": [], "layout": layout}
    columns = lay_out_columns(heatmap.columns)
    scale = _scale(heatmap, colouring or default_colouring(heatmap.metric))
    layout["meta"]["cells"] = {
        "rows": [_row_text(row) for row in rows],
        "columns": columns.spread([columns.steps])[0],
        "statistic": heatmap.statistic.value,
        "medians": scale.medians,
    }
    data = [_cell_trace(scale, columns)]
    if any(map(any, heatmap.nonfinite)):
        data.append(_nonfinite_trace(heatmap, columns))
    return {"data": data, "layout": layout}


def _scale(heatmap: Heatmap, colouring: Colouring) -> Scale:
    values = np.array(heatmap.values, dtype=np.float64)  # None becomes NaN
    if colouring is Colouring.RELATIVE:
        return relative_scale(values)
    return absolute_scale(values, heatmap.metric)


def _heights(num_rows: int) -> tuple[int, float]:
    """Height of the chart and of a row, in pixels."""
    rows = max(1, num_rows)
    plot = max(rows * _LEAST, min(rows, _FEW) * _ROOMY)
    plot = min(MAX_HEIGHT - _TOP - _BOTTOM, plot)
    return plot + _TOP + _BOTTOM, plot / rows


def _row_text(row: HeatmapRow) -> str:
    """What there is to say of a row: its place in the model, and its module."""
    head = SeriesKey.parse(row.series).labels.get("head")
    parts = (
        row.tower,
        None if row.layer is None else str(row.layer),
        row.kind,
        head and f"({head} over heads)",
    )
    place = plain(" ".join(part for part in parts if part), 80)
    module = plain(row.module or "", 120)
    return "\n".join(part for part in (place, module) if part) or plain(row.series)


def _short_label(row: HeatmapRow) -> str:
    what = row.kind or (row.module or row.series).rpartition(".")[2]
    return escape(what if row.layer is None else f"{row.layer} {what}", 12)


def _row_axis(rows: Sequence[HeatmapRow], row_height: float) -> FigureDict:
    """Rows are whole numbers from 0; where they are low, not each is labelled."""
    every = math.ceil(_LABEL_HEIGHT / row_height)
    labelled = range(0, len(rows), every)
    return {
        "type": "linear",
        "range": [-0.5, max(1, len(rows)) - 0.5],
        "fixedrange": True,
        "tickmode": "array",
        "tickvals": list(labelled),
        "ticktext": [_short_label(rows[at]) for at in labelled],
        "tickfont": {"size": 9},
        "ticks": "",
        "showgrid": False,
        "zeroline": False,
    }


def _towers(
    rows: Sequence[HeatmapRow], row_height: float
) -> tuple[list[FigureDict], list[FigureDict]]:
    """Lines between the towers, and their names along the edge where there is room."""
    lines: list[FigureDict] = []
    names: list[FigureDict] = []
    first = 0
    for tower, group in groupby(rows, key=lambda row: row.tower or ""):
        size = len(list(group))
        if first:
            lines.append(_separator(first - 0.5))
        for name in (tower, _SHORT_TOWERS.get(tower, "")):
            if name and len(name) * _LETTER <= size * row_height:
                names.append(_tower_name(escape(name, 40), first + size / 2 - 0.5))
                break
        first += size
    return lines, names


def _separator(at: float) -> FigureDict:
    return {
        "type": "line",
        "xref": "paper",
        "yref": "y",
        "x0": 0,
        "x1": 1,
        "y0": at,
        "y1": at,
        "line": {"width": 1.5, "color": veil(GREY, 0.9)},
    }


def _tower_name(text: str, at: float) -> FigureDict:
    return {
        "text": text,
        "textangle": -90,
        "xref": "paper",
        "x": 0,
        "xanchor": "left",
        "xshift": -MARGIN["l"],
        "yref": "y",
        "y": at,
        "yanchor": "middle",
        "showarrow": False,
        "font": {"size": 10},
    }


def _cell_trace(scale: Scale, columns: Columns) -> FigureDict:
    return {
        "type": "heatmap",
        "x": columns.edges,
        "y": list(range(len(scale.z))),
        "z": columns.spread(with_gaps(np.round(scale.z, 3))),
        "customdata": columns.spread(with_gaps(significant(scale.values, 4))),
        "zmin": scale.ends[0],
        "zmax": scale.ends[1],
        "colorscale": [list(stop) for stop in scale.colours],
        "colorbar": _colour_bar(scale.ticks),
    }


def _nonfinite_trace(heatmap: Heatmap, columns: Columns) -> FigureDict:
    return {
        "type": "heatmap",
        "x": columns.edges,
        "y": list(range(len(heatmap.rows))),
        "z": columns.spread([[count or None for count in row] for row in heatmap.nonfinite]),
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, NONFINITE], [1, NONFINITE]],
        "showscale": False,
    }


def _colour_bar(ticks: Sequence[tuple[float, str]]) -> FigureDict:
    return {
        "orientation": "h",
        "thickness": 8,
        "len": 0.5,
        "x": 1,
        "xanchor": "right",
        "y": 1,
        "yanchor": "bottom",
        "xpad": 0,
        "ypad": 4,
        "outlinewidth": 0,
        "tickvals": [at for at, _ in ticks],
        "ticktext": [text for _, text in ticks],
        "tickangle": 0,
        "tickfont": {"size": FONT_SIZE - 2},
    }
