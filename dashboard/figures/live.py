"""A panel kept up to date: only new samples travel to the browser."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, TypedDict

from dashboard.figures.edges import EdgeMarks
from dashboard.figures.figure import FigureDict
from dashboard.figures.samples import Stretch, drawable
from dashboard.figures.span import Span
from stabilizer.protocol.queries import SeriesData

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


class Extension(NamedTuple):
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


def extend_chart(shown: Shown, data: Iterable[SeriesData]) -> Extension | None:
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
    return Extension(_extend_data(update), {**shown, "lines": lines}, outgrown)


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
