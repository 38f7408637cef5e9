"""A run's panels: drawn as a whole, then brought up to date by new samples alone."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict

from dashboard.client import CollectorClient
from dashboard.figures.chart import line_chart
from dashboard.figures.events import Events
from dashboard.figures.figure import FigureDict
from dashboard.figures.live import Shown, extend_chart, shown_in
from dashboard.figures.samples import Line
from dashboard.figures.scene import Scene, make_scene
from dashboard.handlers.panels import choose_lines
from dashboard.ids import CHART_GRADIENT, CHART_LOSS, PANELS
from stabilizer.protocol.queries import SeriesData, SeriesQuery
from stabilizer.protocol.runs import Run

_FEWEST_POINTS: Final = 200
_MOST_POINTS: Final = 4000
_OVERLAP_STEPS: Final = 64
"""Frames of the same steps may come in several batches; what is known already is left out."""
_LAST_STEP: Final = 2**53
"""As far as steps are counted."""
_MAX_SERIES: Final = 500
"""As many as the collector reads at once."""


class Drawn(TypedDict):
    """What a browser has of all panels; JSON, for a store."""

    number: int
    """Counts what the page was given: an extension of another number is out of date."""
    panels: dict[str, Shown]
    read_to: int
    """Last step that is known; for a look at the past alone, where the run stood."""
    drawn_at: float
    """Of the last whole drawing or attempt at one, in seconds; by the clock of whoever draws."""
    asked: dict[str, Any] | None
    """What was asked for; None once something else has been asked for and could not be drawn."""
    series: str
    """Fingerprint of all that can be picked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How a person looks at the panels."""

    width: int
    """Pixels of one panel."""
    zoom: tuple[float, float] | None = None
    picked: tuple[str, ...] = ()
    log_loss: bool = False

    @property
    def max_points(self) -> int:
        """As many points as there are pixels."""
        return min(max(self.width, _FEWEST_POINTS), _MOST_POINTS)

    @property
    def steps(self) -> dict[str, int]:
        """The range of steps to ask for; empty for the whole run."""
        if self.zoom is None:
            return {}
        first, last = self.zoom
        ends = {"from_step": math.floor(first), "to_step": math.ceil(last)}
        return {name: min(max(step, 0), _LAST_STEP) for name, step in ends.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Panels:
    """All panels, drawn."""

    figures: Mapping[str, FigureDict]
    shown: dict[str, Shown]
    read_to: int
    series: Sequence[str]
    """Text forms of all that the run has, to pick from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Extension:
    """What the browser adds to what it has."""

    updates: dict[str, list[Any]]
    """Panel to what `dcc.Graph.extendData` takes."""
    shown: dict[str, Shown]
    read_to: int
    outgrown: bool
    """Draw the panels anew when there is time."""


def read_zoom(stored: Any) -> tuple[float, float] | None:  # noqa: ANN401  JSON of a browser
    """Read what the store of the range holds; what is no range is none."""
    try:
        first, last = (float(end) for end in stored or ())
    except (TypeError, ValueError, OverflowError):
        return None
    return (first, last) if math.isfinite(first) and math.isfinite(last) and first < last else None


async def read_scene(
    client: CollectorClient, run_id: str, zoom: tuple[float, float] | None
) -> tuple[Run, Scene]:
    """Ask for what all panels share.

    Raises:
        DashboardError: The collector cannot be asked, or has no such run.
    """
    run, incidents, commands, markers = await asyncio.gather(
        client.run(run_id),
        client.incidents(run_id),
        client.commands(run_id),
        client.markers(run_id),
    )
    events = Events(incidents=incidents, commands=commands, markers=markers)
    return run, make_scene(run.attempts, run.step, events=events, zoom=zoom)


async def draw_panels(client: CollectorClient, run_id: str, look: Look) -> Panels:
    """Draw every panel of a run.

    Raises:
        DashboardError: The collector cannot be asked, or has no such run.
    """
    (run, scene), infos = await asyncio.gather(
        read_scene(client, run_id, look.zoom), client.series(run_id)
    )
    series = sorted(info.series for info in infos)
    lines = choose_lines(series, look.picked)
    wanted = _all_series(lines)
    data: list[SeriesData] = []
    if wanted:
        query = SeriesQuery(series=wanted, max_points=look.max_points, **look.steps)
        data = await client.data(run_id, query)
    figures = {
        panel: line_chart(
            lines[panel],
            data,
            scene,
            log_y=_is_log(panel, look),
        )
        for panel in PANELS
    }
    return Panels(
        figures=figures,
        shown={panel: shown_in(figure) for panel, figure in figures.items()},
        read_to=_known_to(run, look.zoom, data),
        series=series,
    )


def _is_log(panel: str, look: Look) -> bool:
    return look.log_loss if panel == CHART_LOSS else panel == CHART_GRADIENT


def _all_series(lines: Mapping[str, Sequence[Line]]) -> tuple[str, ...]:
    found = dict.fromkeys(line.series for of_panel in lines.values() for line in of_panel)
    return tuple(found)[:_MAX_SERIES]


def _known_to(run: Run, zoom: tuple[float, float] | None, data: Sequence[SeriesData]) -> int:
    if zoom is not None and zoom[1] < run.step:
        return run.step  # what comes after the range is not asked for
    return _last_step(data, run.attempt)


def _last_step(data: Sequence[SeriesData], attempt: int) -> int:
    return max(
        (part.steps[-1] for part in data if part.attempt == attempt and part.steps), default=0
    )


async def extend_panels(client: CollectorClient, run_id: str, drawn: Drawn) -> Extension | None:
    """Ask for the newest samples only; None if there are none.

    Where there are none, the run may have begun another attempt that the page has missed: then
    nothing is added and the panels are to be drawn anew.

    Raises:
        DashboardError: The collector cannot be asked, or has no such run.
    """
    panels = drawn["panels"]
    series = tuple(
        dict.fromkeys(line["series"] for shown in panels.values() for line in shown["lines"])
    )[:_MAX_SERIES]
    attempt = next((shown["attempt"] for shown in panels.values()), None)
    if not series or attempt is None:
        # Nothing was measured yet when it was drawn: there may be series now.
        return _to_draw_anew(drawn)
    query = SeriesQuery(
        series=series,
        attempt=attempt,
        from_step=max(0, drawn["read_to"] - _OVERLAP_STEPS),
        max_points=_MOST_POINTS,  # a page that has slept for hours must not get every step of them
    )
    data = await client.data(run_id, query)
    updates: dict[str, list[Any]] = {}
    after = dict(panels)
    outgrown = False
    for panel, shown in panels.items():
        extension = extend_chart(shown, data)
        if extension is not None:
            updates[panel] = extension.value
            after[panel] = extension.shown
            outgrown |= extension.outgrown
    if not updates:
        is_past = (await client.run(run_id)).attempt != attempt
        return _to_draw_anew(drawn) if is_past else None
    read_to = max(drawn["read_to"], _last_step(data, attempt))
    return Extension(updates=updates, shown=after, read_to=read_to, outgrown=outgrown)


def _to_draw_anew(drawn: Drawn) -> Extension:
    return Extension(updates={}, shown=drawn["panels"], read_to=drawn["read_to"], outgrown=True)


def looks_at_the_newest(zoom: tuple[float, float] | None, read_to: int) -> bool:
    """Whether new samples would be seen: not by who has zoomed into the past."""
    return zoom is None or zoom[1] >= read_to
