"""Heatmap of a metric over layers and steps: one row per series, the first layer at the bottom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby, pairwise
from statistics import median
from typing import Any, Final

import numpy as np

from dashboard.figures.figure import (
    FONT_SIZE,
    MARGIN,
    FigureDict,
    base_layout,
    escape,
    note,
    plain,
    step_axis,
)
from dashboard.figures.palette import DIVERGING, GREY, NONFINITE, SEQUENTIAL, veil
from dashboard.figures.samples import FloatArray, significant, with_gaps
from dashboard.figures.scene import Scene, meta_of
from dashboard.formatting import number
from stabilizer.protocol.metrics import Metric
from stabilizer.protocol.series import SeriesKey
from stabilizer.protocol.views import Heatmap, HeatmapColumn, HeatmapRow

_CLIP: Final = 3.0
"""log2 of the factors at the ends of the relative colouring: 1/8 and 8."""
FIXED_RANGES: Final[dict[str, tuple[float, float]]] = {
    Metric.ATTENTION_ENTROPY: (0.0, 1.0),
    Metric.GATE: (-1.0, 1.0),
}
"""Metrics with a fixed range of values."""


@dataclass(frozen=True, slots=True)
class ColourScale:
    """Colours of the cells of a heatmap."""

    z: FloatArray
    """Shape [rows, columns]; NaN for cells without colour."""
    values: FloatArray
    """Shape [rows, columns]; NaN for non-finite values."""
    ends: tuple[float, float]
    """z at the ends of the scale."""
    colours: Sequence[tuple[float, str]]
    ticks: Sequence[tuple[float, str]]
    """z and its text, for the colour bar."""
    medians: list[float | None] | None = None
    """Median that each row is compared with; None for absolute colouring."""


def relative_scale(values: FloatArray) -> ColourScale:
    """Colour each cell by its ratio to the median of its row.

    Args:
        values: Shape [rows, columns]; non-finite values get no colour.
    """
    finite = np.where(np.isfinite(values), values, np.nan)
    medians = [_median(row) for row in finite]
    factors = np.stack([_factors(row, one) for row, one in zip(finite, medians, strict=True)])
    with np.errstate(divide="ignore"):
        z = np.clip(np.log2(factors), -_CLIP, _CLIP)
    ticks = [(-3, "1/8"), (0, "median"), (3, "8x")]
    return ColourScale(z, finite, (-_CLIP, _CLIP), DIVERGING, ticks, medians)


def _median(row: FloatArray) -> float | None:
    known = row[np.isfinite(row)]
    return float(significant(np.median(known, keepdims=True), 6)[0]) if len(known) else None


def _factors(row: FloatArray, middle: float | None) -> FloatArray:
    """Return the ratio of each value to the row's median; 0 for values of the other sign.

    In a row with median 0, all other values are at the end of the scale.
    """
    if not middle:
        return np.where(np.isnan(row), np.nan, np.where(row == 0, 1.0, 2**_CLIP))
    with np.errstate(over="ignore"):
        return np.where(np.isnan(row), np.nan, np.maximum(row / middle, 0.0))


def absolute_scale(values: FloatArray, metric: str) -> ColourScale:
    """Colour each cell by its value: logarithmic for non-negative metrics without a fixed range.

    Args:
        values: Shape [rows, columns]; non-finite values get no colour.
        metric: Name of the metric; those of `FIXED_RANGES` have a fixed scale.
    """
    finite = np.where(np.isfinite(values), values, np.nan)
    if metric in FIXED_RANGES:
        return _linear(finite, FIXED_RANGES[metric])
    known = finite[np.isfinite(finite)]
    if len(known) and known.min() >= 0 < known.max():
        return _logarithmic(finite, known)
    reach = float(np.abs(known).max()) if len(known) else 0.0
    return _linear(finite, (-reach or -1.0, reach or 1.0))


def _linear(values: FloatArray, ends: tuple[float, float]) -> ColourScale:
    low, high = ends
    ticks = [(at, number(at)) for at in (low, (low + high) / 2, high)]
    colours = DIVERGING if low < 0 else SEQUENTIAL
    return ColourScale(values, values, ends, colours, ticks)


def _logarithmic(values: FloatArray, known: FloatArray) -> ColourScale:
    """Return a logarithmic scale; zero gets the colour of the smallest positive value."""
    low, high = float(np.log10(known[known > 0].min())), float(np.log10(known.max()))
    with np.errstate(divide="ignore"):
        z = np.maximum(np.log10(values), low)
    ends = (low, high) if high > low else (low - 1, high)
    ticks = [(at, number(10**at)) for at in (ends[0], sum(ends) / 2, ends[1])]
    return ColourScale(z, values, ends, SEQUENTIAL, ticks)


_GAP: Final = 3.0
"""Distances more than this many times the usual one become gaps."""
_AROUND: Final = 3
"""Distances on either side that define the usual one."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns side by side, with empty ones for gaps."""

    edges: list[float]
    """One more than columns, including empty ones."""
    sources: list[int | None]
    """Index of each column in the heatmap; None for an empty one."""
    steps: list[tuple[int, int]]
    """First and last step of each column of the heatmap."""

    def spread(self, cells: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """Insert None for the empty columns into rows of cells."""
        return [[None if at is None else row[at] for at in self.sources] for row in cells]


def lay_out_columns(columns: Sequence[HeatmapColumn]) -> Columns:
    """Compute the edges of columns, halfway between neighbours.

    Args:
        columns: Ascending, without overlap.
    """
    distances = [after.first_step - before.last_step for before, after in pairwise(columns)]
    usual = _usual_distances(distances)
    edges: list[float] = []
    sources: list[int | None] = []
    for index, column in enumerate(columns):
        if index == 0:
            edges.append(column.first_step - usual[0] / 2)
        sources.append(index)
        distance = distances[index] if index < len(distances) else usual[-1]
        around = usual[min(index, len(usual) - 1)]
        if distance > _GAP * around:
            edges += [column.last_step + around / 2, column.last_step + distance - around / 2]
            sources.append(None)
        else:
            edges.append(column.last_step + distance / 2)
    steps = [(column.first_step, column.last_step) for column in columns]
    return Columns(edges, sources, steps)


def _usual_distances(distances: Sequence[int]) -> list[float]:
    """Return the usual distance around each distance; at least one element.

    Jobs measure more often during an incident, so that nearby distances count as well as the
    overall median. The largest one nearby is ignored, since it may be a gap itself.
    """
    if not distances:
        return [1.0]
    overall = max(1.0, float(median(distances)))
    nearby = (
        [*distances[max(0, at - _AROUND) : at], *distances[at + 1 : at + 1 + _AROUND]]
        for at in range(len(distances))
    )
    return [max(overall, float(sorted([0, 0, *others])[-2])) for others in nearby]


MAX_HEIGHT: Final = 900
"""Pixels."""
_TOP, _BOTTOM = 34, 26
_ROOMY, _LEAST = 16, 10
"""Height of a row in pixels with few rows, and with many."""
_FEW: Final = 30
_LABEL_HEIGHT: Final = 10
_LETTER: Final = 6.0
"""Width of a letter of a tower's name in pixels, with spacing."""
_SHORT_TOWERS: Final = {"cross_attention": "cross", "resampler": "resamp."}


class Colouring(StrEnum):
    """Meaning of the colour of a cell."""

    RELATIVE = "relative"
    """Ratio to the median of the row."""
    ABSOLUTE = "absolute"
    """Value of the cell."""


def default_colouring(metric: str) -> Colouring:
    """Return the default colouring: absolute for metrics with a fixed range, else relative."""
    return Colouring.ABSOLUTE if metric in FIXED_RANGES else Colouring.RELATIVE


def heatmap_chart(
    heatmap: Heatmap, scene: Scene, *, colouring: Colouring | None = None
) -> FigureDict:
    """Draw a heatmap with the same axis of steps as the panels.

    Cells with NaN or Inf have a colour outside of every scale; cells without samples have none.

    Args:
        heatmap: Rows from the first layer to the last.
        scene: Shared by all panels; holds the range of steps.
        colouring: None: the metric's default.
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
        layout["annotations"] = [note("no samples in this range")]
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


def _scale(heatmap: Heatmap, colouring: Colouring) -> ColourScale:
    values = np.array(heatmap.values, dtype=np.float64)  # None becomes NaN
    if colouring is Colouring.RELATIVE:
        return relative_scale(values)
    return absolute_scale(values, heatmap.metric)


def _heights(num_rows: int) -> tuple[int, float]:
    """Return the height of the chart and of a row in pixels."""
    rows = max(1, num_rows)
    plot = max(rows * _LEAST, min(rows, _FEW) * _ROOMY)
    plot = min(MAX_HEIGHT - _TOP - _BOTTOM, plot)
    return plot + _TOP + _BOTTOM, plot / rows


def _row_text(row: HeatmapRow) -> str:
    """Describe a row: tower, layer, kind and module."""
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
    """Return the axis of rows, numbered from 0; with low rows not each is labelled."""
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
    """Return lines between towers, and their names along the edge if there is room."""
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


def _cell_trace(scale: ColourScale, columns: Columns) -> FigureDict:
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
