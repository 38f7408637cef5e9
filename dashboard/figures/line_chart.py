"""Line charts: panels with edge marks for NaN, Inf and spikes, and their incremental update."""

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

_MARKERS: Final[Mapping[str, FigureDict]] = {
    "nonfinite": {"symbol": "x-thin-open", "size": 6, "color": NONFINITE, "line": {"width": 1.5}},
    "above": {"symbol": "triangle-up", "size": 7, "color": GREY},
    "below": {"symbol": "triangle-down", "size": 7, "color": GREY},
}
_HEIGHTS: Final = {"nonfinite": 0.81, "above": 0.81, "below": 0.03}


def _texts() -> dict[int, list[str]]:
    return defaultdict(list)


@dataclass(slots=True)
class EdgeMarks:
    """Marks for samples outside of the panel: their texts, by step."""

    nonfinite: dict[int, list[str]] = field(default_factory=_texts)
    above: dict[int, list[str]] = field(default_factory=_texts)
    below: dict[int, list[str]] = field(default_factory=_texts)

    def add(self, label: str, steps: Sequence[int], values: Sequence[float], span: Span) -> None:
        """Add marks for the samples of one line.

        Each NaN or Inf gets a mark; consecutive spikes share one, at the farthest value.

        Args:
            label: Label of the line.
            steps: Ascending.
            values: One for each step.
            span: Visible range of the line's axis.
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
        """Return three traces, empty ones too, so that later marks can extend them."""
        by_name = {"nonfinite": self.nonfinite, "above": self.above, "below": self.below}
        return [_trace(name, marks) for name, marks in by_name.items()]


def _spike(steps: Sequence[int], values: Sequence[float], side: int) -> tuple[int, str]:
    farthest = (max if side > 0 else min)(values)
    where = steps[values.index(farthest)]
    text = f"{number(farthest)} at step {where:,}"
    if len(steps) > 1:
        text += f", out of range from step {steps[0]:,} to {steps[-1]:,}"
    return where, text


def _trace(name: str, marks: Mapping[int, Sequence[str]]) -> FigureDict:
    return {
        "type": "scatter",
        "uid": name,
        "showlegend": False,
        "mode": "markers",
        "yaxis": EVENT_AXIS,
        "x": list(marks),
        "y": [_HEIGHTS[name]] * len(marks),
        "customdata": ["\n".join(texts) for texts in marks.values()],
        "marker": _MARKERS[name],
        "cliponaxis": False,
    }


HEIGHT: Final = 190
_FEW: Final = 60
"""Up to this many samples, each gets a dot."""
_MAX_LABEL: Final = 60
_MAX_POWERS: Final = 4
"""Labelled powers of ten on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class _ValueAxis:
    """The left or the right axis of values."""

    log: bool
    robust: Span | None
    """None without drawable values; likewise `full`."""
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
        lines: Lines to draw. Those with `secondary` use the linear right axis.
        data: Samples of all attempts; other series are ignored.
        scene: Shared by all panels.
        log_y: Logarithmic left axis; values that are not positive get a mark below.
        height: Height of the panel in pixels.
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
    traces += [_abandoned_trace(one, left) for one in drawn for left in one.samples.abandoned]
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
"""Keeps the left axis of a panel without lines on it; plotly misplaces the x axis otherwise."""


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
        # The right axis shows scales, such as lr_scale, from zero.
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


def _abandoned_trace(one: _Drawn, left: Stretch) -> FigureDict:
    """Draw an abandoned branch, faded; hidden in the legend together with its line.

    Only these traces have a `meta`, with their label in tooltips.
    """
    return {
        "type": "scatter",
        "meta": {"label": plain(_abandoned_label(one.line, left), _MAX_LABEL)},
        "legendgroup": one.line.series,
        "showlegend": False,
        "mode": "lines",
        "yaxis": "y2" if one.line.secondary else "y",
        "x": left.steps,
        "y": drawable(left.values, log=one.axis.log),
        "line": {"color": one.line.colour, "width": 1.2, "dash": "3px,2px"},
        "opacity": 0.6,
    }


def _abandoned_label(line: Line, left: Stretch) -> str:
    return f"{line.label}, attempt {left.attempts[0]} (abandoned)"


def _edge_marks(drawn: Sequence[_Drawn]) -> EdgeMarks:
    marks = EdgeMarks()
    for one in drawn:
        live = one.samples.live
        marks.add(one.line.label, live.steps, live.values, one.axis.span)
        for left in one.samples.abandoned:
            own = slice(left.num_shared, None)
            label = _abandoned_label(one.line, left)
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
    """Return ticks at 1, 2 and 5 of each power of ten, or at some of the powers if there are many.

    They are written in full, unlike plotly's bare 2 and 5 between powers.
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
"""A line with more samples than this is redrawn, downsampled."""


class ShownLine(TypedDict):
    """State of one line in the browser."""

    series: str
    label: str
    secondary: bool
    last_step: int | None
    """Step of its last live sample, if any."""
    num_samples: int


class Shown(TypedDict):
    """State of a panel in the browser; small JSON for a `dcc.Store`."""

    attempt: int | None
    """Newest attempt drawn. If the run has a newer one, redraw the panel."""
    lines: list[ShownLine]
    spans: list[tuple[float, float] | None]
    """Lowest and highest visible value on the left and on the right axis."""
    log: bool
    """Whether the left axis is logarithmic."""


class ChartExtension(NamedTuple):
    """Incremental update of a panel."""

    value: list[Any]
    """For `dcc.Graph.extendData`."""
    shown: Shown
    """State of the panel afterwards."""
    outgrown: bool
    """Redraw the panel when there is time: a value is out of range, or a line is too long."""


def shown_in(figure: FigureDict) -> Shown:
    """Return the state of a panel drawn by `line_chart`."""
    shown: Shown = figure["layout"]["meta"]["shown"]
    return shown


def extend_chart(shown: Shown, data: Iterable[SeriesData]) -> ChartExtension | None:
    """Extend a panel by its new samples.

    Args:
        shown: State of the panel, from `shown_in` or from the previous extension.
        data: Samples of the newest attempt. Known samples and those of other attempts are ignored;
            if the run has started another attempt, redraw the panel.

    Returns:
        None if there are no new samples.
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
