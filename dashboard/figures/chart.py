"""A panel: the lines of one metric over the steps.

Order of the traces, on which `extend_chart` and `assets/charts.js` rely, for n lines:

    0 .. n-1    the lines, live part of all attempts in one piece
    n           NaN and Inf
    n+1, n+2    spikes above, and values below, what the panel shows
    n+3 ..      abandoned branches, then the events of the scene
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dashboard.figures.edges import EdgeMarks
from dashboard.figures.figure import FigureDict, base_layout, note, step_axis
from dashboard.figures.live import Shown
from dashboard.figures.notes import escape, plain
from dashboard.figures.samples import Line, LineSamples, Stretch, collect, drawable
from dashboard.figures.scene import Scene, meta_of
from dashboard.figures.span import Span
from dashboard.words.amounts import number
from stabilizer.protocol.queries import SeriesData

HEIGHT: Final = 190
_FEW: Final = 60
"""Up to so many samples each has a dot, so that a lone one is seen."""
_MAX_LABEL: Final = 60
_MAX_POWERS: Final = 4
"""Ticks on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class _ValueAxis:
    """One of the two axes of values."""

    log: bool
    robust: Span | None
    """None if nothing on it can be drawn; likewise `full`."""
    full: Span | None

    @property
    def span(self) -> Span:
        return self.robust or Span(0.0, 0.0, self.log)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A line with its samples and its axis."""

    line: Line
    samples: LineSamples
    axis: _ValueAxis


def line_chart(
    lines: Sequence[Line],
    data: Sequence[SeriesData],
    scene: Scene,
    *,
    log_y: bool = False,
    height: int = HEIGHT,
) -> FigureDict:
    """Draw one panel.

    Args:
        lines: What to draw. Those with `secondary` have their own, linear axis to the right.
        data: Samples of these lines, all attempts; of other series they are left out.
        scene: What all panels share.
        log_y: Make the left axis logarithmic; what is not positive is told by a mark below.
        height: Of the panel, in pixels.
    """
    samples = [collect(line.series, data, scene.branches) for line in lines]
    axes = [_axis(lines, samples, log_y, is_right=is_right) for is_right in (False, True)]
    drawn = [
        _Drawn(line, one, axes[line.secondary]) for line, one in zip(lines, samples, strict=True)
    ]
    layout = _layout(lines, scene, axes, height)
    layout["meta"]["shown"] = _shown(drawn, scene, axes)
    if not any(one.values() for one in samples):
        layout["annotations"] = [note("no samples in these steps")]
    traces = [_live_trace(one) for one in drawn]
    traces += _edge_marks(drawn).traces()
    traces += [_left_trace(one, left) for one in drawn for left in one.samples.abandoned]
    if all(line.secondary for line in lines):
        traces.append(_HOLDER)
    return {"data": [*traces, *scene.traces], "layout": layout}


_HOLDER: Final[FigureDict] = {
    "type": "scatter",
    "x": [None],
    "y": [None],
    "hoverinfo": "skip",
    "showlegend": False,
}
"""Holds the left axis where no line does: plotly draws the foot of a panel without one at NaN."""


def _axis(
    lines: Sequence[Line], samples: Sequence[LineSamples], log_y: bool, *, is_right: bool
) -> _ValueAxis:
    values = [
        value
        for line, one in zip(lines, samples, strict=True)
        if line.secondary == is_right
        for value in one.values()
    ]
    log = log_y and not is_right
    if is_right and values:
        # What stands beside another metric is a share of something: shown from zero.
        values.append(0.0)
    return _ValueAxis(log, Span.robust(values, log=log), Span.full(values, log=log))


def _live_trace(one: _Drawn) -> FigureDict:
    live = one.samples.live
    return {
        "type": "scatter",
        "name": escape(one.line.label, _MAX_LABEL),
        "legendgroup": one.line.series,
        "mode": "lines+markers" if len(live.steps) <= _FEW else "lines",
        "yaxis": "y2" if one.line.secondary else "y",
        "x": live.steps,
        "y": drawable(live.values, log=one.axis.log),
        "customdata": live.attempts,
        "line": {"color": one.line.colour, "width": 1.5},
        "marker": {"size": 4, "color": one.line.colour},
    }


def _left_trace(one: _Drawn, left: Stretch) -> FigureDict:
    """An abandoned branch, faded; it goes with its line when that is hidden in the legend.

    Only these traces have a `meta`, with the name that the crosshair gives them.
    """
    return {
        "type": "scatter",
        "meta": {"label": plain(_left_label(one.line, left), _MAX_LABEL)},
        "legendgroup": one.line.series,
        "showlegend": False,
        "mode": "lines",
        "yaxis": "y2" if one.line.secondary else "y",
        "x": left.steps,
        "y": drawable(left.values, log=one.axis.log),
        "line": {"color": one.line.colour, "width": 1.2, "dash": "3px,2px"},
        "opacity": 0.6,
    }


def _left_label(line: Line, left: Stretch) -> str:
    return f"{line.label}, attempt {left.attempts[0]} (abandoned)"


def _edge_marks(drawn: Sequence[_Drawn]) -> EdgeMarks:
    marks = EdgeMarks()
    for one in drawn:
        live = one.samples.live
        marks.add(one.line.label, live.steps, live.values, one.axis.span)
        for left in one.samples.abandoned:
            own = slice(left.num_shared, None)
            label = _left_label(one.line, left)
            marks.add(label, left.steps[own], left.values[own], one.axis.span)
    return marks


def _shown(drawn: Sequence[_Drawn], scene: Scene, axes: Sequence[_ValueAxis]) -> Shown:
    return {
        "attempt": scene.branches[-1].attempt if scene.branches else None,
        "lines": [
            {
                "series": one.line.series,
                "label": plain(one.line.label, _MAX_LABEL),
                "secondary": one.line.secondary,
                "last_step": one.samples.live.steps[-1] if one.samples.live.steps else None,
                "num_samples": len(one.samples.live.steps),
            }
            for one in drawn
        ],
        "spans": [
            None if axis.robust is None else (axis.robust.low, axis.robust.high) for axis in axes
        ],
        "log": axes[0].log,
    }


def _layout(
    lines: Sequence[Line], scene: Scene, axes: Sequence[_ValueAxis], height: int
) -> FigureDict:
    has_legend = len(lines) > 1
    layout = base_layout(height, top=26 if has_legend else 6)
    layout["xaxis"] = step_axis(scene.x_range)
    layout["yaxis"] = _y_axis(axes[0])
    if any(line.secondary for line in lines):
        layout["yaxis2"] = _y_axis(axes[1]) | {
            "overlaying": "y",
            "side": "right",
            "showgrid": False,
            "ticklabelposition": "inside",
        }
    layout["yaxis3"] = {"overlaying": "y", "range": [0, 1], "fixedrange": True, "visible": False}
    layout["shapes"] = list(scene.shapes)
    layout["showlegend"] = has_legend
    layout["legend"] = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}
    layout["meta"] = meta_of(scene)
    layout["meta"]["y_full"] = [
        None if axis.full is None else axis.full.axis_range() for axis in axes
    ]
    return layout


def _y_axis(axis: _ValueAxis) -> FigureDict:
    return {
        "type": "log" if axis.log else "linear",
        "range": [0, 1] if axis.robust is None else axis.robust.axis_range(),
        "fixedrange": True,
        **(_log_ticks(axis) if axis.log else {"tickmode": "auto", "nticks": 5}),
        "exponentformat": "power",
        "zeroline": False,
        "showticklabels": axis.robust is not None,
        "showgrid": axis.robust is not None,
    }


def _log_ticks(axis: _ValueAxis) -> FigureDict:
    """Ticks at 1, 2 and 5 of each power of ten, or at some of the powers where there are many.

    They are written out: what plotly leaves between two powers is a bare 2 or 5.
    """
    if axis.robust is None or axis.full is None:
        return {}
    low, high = axis.robust.axis_range()
    ends = axis.full.axis_range()
    every = math.ceil((high - low) / _MAX_POWERS)
    powers = range(math.floor(ends[0]), math.ceil(ends[1]) + 1)
    values = [10.0**power for power in powers if power % every == 0]
    if high - low < 2:
        values += [
            part * 10.0**power
            for power in range(math.floor(low), math.ceil(high) + 1)
            for part in (2, 5)
        ]
    return {
        "tickmode": "array",
        "tickvals": values,
        "ticktext": [number(value) for value in values],
    }
