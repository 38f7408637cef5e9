"""Samples that no line can show, told by marks at the edge of the panel: NaN, Inf and spikes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final, NamedTuple, TypedDict

from dashboard.figures.figure import FigureDict, base_layout, escape, note, plain, step_axis
from dashboard.figures.palette import GREY, NONFINITE
from dashboard.figures.samples import Line, LineSamples, Stretch, collect, drawable
from dashboard.figures.scene import EVENT_AXIS, Scene, meta_of
from dashboard.figures.span import Span
from dashboard.formatting import number
from stabilizer.protocol.queries import SeriesData

_LOOKS: Final[Mapping[str, FigureDict]] = {
    "nonfinite": {"symbol": "x-thin-open", "size": 6, "color": NONFINITE, "line": {"width": 1.5}},
    "above": {"symbol": "triangle-up", "size": 7, "color": GREY},
    "below": {"symbol": "triangle-down", "size": 7, "color": GREY},
}
_HEIGHTS: Final = {"nonfinite": 0.81, "above": 0.81, "below": 0.03}


def _told() -> dict[int, list[str]]:
    return defaultdict(list)


@dataclass(slots=True)
class EdgeMarks:
    """By step, what there is to say of it."""

    nonfinite: dict[int, list[str]] = field(default_factory=_told)
    above: dict[int, list[str]] = field(default_factory=_told)
    below: dict[int, list[str]] = field(default_factory=_told)

    def add(self, label: str, steps: Sequence[int], values: Sequence[float], span: Span) -> None:
        """Find the samples of one stretch that need a mark.

        Each NaN or Inf has its own; of spikes that follow one another the farthest stands for all.

        Args:
            label: Name of the line.
            steps: Ascending.
            values: As many.
            span: What the line's axis shows.
        """
        name = plain(label, 60)
        sides = [span.side(value) if math.isfinite(value) else None for value in values]
        at = 0
        for side, group in groupby(sides):
            part = slice(at, at + len(list(group)))
            at = part.stop
            if side is None:
                for step, value in zip(steps[part], values[part], strict=True):
                    self.nonfinite[step].append(f"{name}: {number(value)} at step {step:,}")
            elif side:
                where, text = _spike(steps[part], values[part], side)
                (self.above if side > 0 else self.below)[where].append(f"{name}: {text}")

    def traces(self) -> list[FigureDict]:
        """Three traces, empty ones too, so that later marks find their place."""
        told = {"nonfinite": self.nonfinite, "above": self.above, "below": self.below}
        return [_trace(name, marks) for name, marks in told.items()]


def _spike(steps: Sequence[int], values: Sequence[float], side: int) -> tuple[int, str]:
    farthest = (max if side > 0 else min)(values)
    where = steps[values.index(farthest)]
    text = f"{number(farthest)} at step {where:,}"
    if len(steps) > 1:
        text += f", out of range from step {steps[0]:,} to {steps[-1]:,}"
    return where, text


def _trace(name: str, told: Mapping[int, Sequence[str]]) -> FigureDict:
    return {
        "type": "scatter",
        "uid": name,
        "showlegend": False,
        "mode": "markers",
        "yaxis": EVENT_AXIS,
        "x": list(told),
        "y": [_HEIGHTS[name]] * len(told),
        "customdata": ["\n".join(texts) for texts in told.values()],
        "marker": _LOOKS[name],
        "cliponaxis": False,
    }


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
        layout["annotations"] = [note("no samples in this range")]
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


_MANY: Final = 4000
"""A line that has grown to so many samples is better built anew, thinned."""


class ShownLine(TypedDict):
    """What a browser has of one line."""

    series: str
    label: str
    secondary: bool
    last_step: int | None
    """Of its last live sample; None if it has none."""
    num_samples: int


class Shown(TypedDict):
    """What a browser has of a panel; small, and JSON as it is, for a `dcc.Store`."""

    attempt: int | None
    """The newest one that was known. When the run has a newer one, build the panel anew."""
    lines: list[ShownLine]
    spans: list[tuple[float, float] | None]
    """Lowest and highest value within the panel, on the left and on the right axis."""
    log: bool
    """Whether the left axis is logarithmic."""


class ChartExtension(NamedTuple):
    """How to bring a panel up to date."""

    value: list[Any]
    """For `dcc.Graph.extendData`."""
    shown: Shown
    """What the browser has afterwards."""
    outgrown: bool
    """Build the panel anew when there is time: a value lies outside of it, or it is too long."""


def shown_in(figure: FigureDict) -> Shown:
    """What a browser has once it draws a figure of `line_chart`."""
    shown: Shown = figure["layout"]["meta"]["shown"]
    return shown


def extend_chart(shown: Shown, data: Iterable[SeriesData]) -> ChartExtension | None:
    """Bring a panel up to date by its new samples alone.

    Args:
        shown: What the browser has, by `shown_in` or by the extension before.
        data: Samples of the newest attempt. What the browser has already is left out, as is what
            belongs to another attempt: when the run has begun one, build the panel anew.

    Returns:
        None if nothing is new.
    """
    by_series = {part.series: part for part in data if part.attempt == shown["attempt"]}
    new = [_newer(line, by_series.get(line["series"])) for line in shown["lines"]]
    if not any(stretch.steps for stretch in new):
        return None
    marks = EdgeMarks()
    update: dict[int, FigureDict] = {}
    outgrown = False
    for index, (line, stretch) in enumerate(zip(shown["lines"], new, strict=True)):
        if not stretch.steps:
            continue
        log = shown["log"] and not line["secondary"]
        ends = shown["spans"][line["secondary"]]
        marks.add(line["label"], stretch.steps, stretch.values, Span(*(ends or (0.0, 0.0)), log))
        y = drawable(stretch.values, log=log)
        update[index] = {"x": stretch.steps, "y": y, "customdata": stretch.attempts}
        is_homeless = ends is None and any(value is not None for value in y)
        outgrown |= is_homeless or line["num_samples"] + len(y) > _MANY
    for offset, trace in enumerate(marks.traces()):
        if trace["x"]:
            update[len(new) + offset] = trace
    lines = [_grown(line, stretch) for line, stretch in zip(shown["lines"], new, strict=True)]
    outgrown |= bool(marks.above or marks.below)
    return ChartExtension(_extend_data(update), {**shown, "lines": lines}, outgrown)


def _newer(line: ShownLine, part: SeriesData | None) -> Stretch:
    new = Stretch()
    if part is not None:
        last = line["last_step"]
        first = 0 if last is None else bisect_right(part.steps, last)
        new.add(part, first, len(part.steps))
    return new


def _grown(line: ShownLine, new: Stretch) -> ShownLine:
    return {
        **line,
        "last_step": new.steps[-1] if new.steps else line["last_step"],
        "num_samples": line["num_samples"] + len(new.steps),
    }


def _extend_data(update: Mapping[int, FigureDict]) -> list[Any]:
    values = {name: [part[name] for part in update.values()] for name in ("x", "y", "customdata")}
    return [values, list(update)]
