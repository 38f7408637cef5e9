"""Callbacks of the line charts: which series they draw, and how they are drawn and extended."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict

from dash import ClientsideFunction, Dash, Input, Output, Patch, State, ctx, no_update
from dash.exceptions import PreventUpdate

from dashboard import ids
from dashboard.callbacks.renewal import fingerprint
from dashboard.client import Collector, CollectorApi
from dashboard.components.problems import small_problem
from dashboard.errors import DashboardError, MissingError, SignInRequiredError
from dashboard.figures.figure import FigureDict
from dashboard.figures.line_chart import HEIGHT, Shown, extend_chart, line_chart, shown_in
from dashboard.figures.palette import line_colour
from dashboard.figures.samples import Line
from dashboard.figures.scene import Events, Scene, make_scene
from dashboard.ids import CHART_GRADIENT, CHART_LOSS, PANELS
from stabilizer.clock import Clock
from stabilizer.protocol.metrics import Metric
from stabilizer.protocol.queries import SeriesData, SeriesQuery
from stabilizer.protocol.runs import Run
from stabilizer.protocol.series import SeriesKey

_MAX_LINES: Final = 8
"""More lines than this in one panel are hard to tell apart."""


def choose_lines(series: Iterable[str], picked: Sequence[str]) -> Mapping[str, tuple[Line, ...]]:
    """Return the lines of each panel.

    Args:
        series: Text forms of all series of the run.
        picked: Text forms picked for the last panel; unknown ones are ignored.
    """
    keys = {text: SeriesKey.parse(text) for text in series}
    found = {
        ids.CHART_LOSS: _losses(keys),
        ids.CHART_GRADIENT: _taken(keys, Metric.GRAD_NORM, lambda labels: not labels),
        ids.CHART_RATE: _taken(keys, Metric.LR, lambda labels: set(labels) <= {"group"}),
        ids.CHART_Z_LOSS: _taken(keys, Metric.Z_LOSS, lambda labels: set(labels) <= {"source"}),
        ids.CHART_PICKED: [text for text in picked if text in keys],
    }
    lines = {panel: _lines(panel, texts, keys) for panel, texts in found.items()}
    if Metric.LR_SCALE.value in keys:
        scale = Line(
            series=Metric.LR_SCALE.value,
            label=Metric.LR_SCALE.value,
            colour=line_colour(len(lines[ids.CHART_RATE])),
            secondary=True,
        )
        lines[ids.CHART_RATE] = (*lines[ids.CHART_RATE], scale)
    return lines


def _losses(keys: Mapping[str, SeriesKey]) -> list[str]:
    """Find the loss; if the job reports only what it backpropagates, that."""
    by_source = (
        _taken(keys, metric, lambda labels: set(labels) <= {"source"})
        for metric in (Metric.LOSS, Metric.LOSS_TOTAL)
    )
    return next((texts for texts in by_source if texts), [])


def _taken(
    keys: Mapping[str, SeriesKey], metric: str, fits: Callable[[Mapping[str, str]], bool]
) -> list[str]:
    """Find the series of a metric, the one without labels first, group 2 before group 10."""
    texts = [text for text, key in keys.items() if key.metric == metric and fits(key.labels)]
    return sorted(texts, key=lambda text: (len(keys[text].labels), _counted(text)))[:_MAX_LINES]


def _counted(text: str) -> list[str | int]:
    parts = re.split(r"([0-9]+)", text)  # every second part is a number
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def _lines(panel: str, texts: Sequence[str], keys: Mapping[str, SeriesKey]) -> tuple[Line, ...]:
    return tuple(
        Line(
            series=text,
            label=text if panel == ids.CHART_PICKED else _label(keys[text]),
            colour=line_colour(index),
        )
        for index, text in enumerate(texts)
    )


def _label(key: SeriesKey) -> str:
    """Label a line by its label values, or by its metric."""
    if not key.labels:
        return "all" if key.metric in (Metric.LOSS, Metric.Z_LOSS) else key.metric
    return ", ".join(key.labels.values()).strip() or str(key)


_FEWEST_POINTS: Final = 200
_MOST_POINTS: Final = 4000
_OVERLAP_STEPS: Final = 64
"""Frames of the same steps may arrive in several batches; known samples are left out."""
_LAST_STEP: Final = 2**53
"""Upper bound of steps."""
_MAX_SERIES: Final = 500
"""Limit of one request to the collector."""


class Drawn(TypedDict):
    """What the browser shows in all panels; JSON, for a store."""

    number: int
    """Version of the data on the page; an extension of another version is out of date."""
    panels: dict[str, Shown]
    read_to: int
    """Last step read; for a zoom into the past, the run's step at that time."""
    drawn_at: float
    """Monotonic time of the last full drawing or attempt at one, in seconds."""
    asked: dict[str, Any] | None
    """Inputs of the drawing; None after a later drawing has failed."""
    series: str
    """Fingerprint of the series that can be picked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PanelView:
    """Width, zoom and selections of the panels."""

    width: int
    """Pixels of one panel."""
    zoom: tuple[float, float] | None = None
    picked: tuple[str, ...] = ()
    log_loss: bool = False

    @property
    def max_points(self) -> int:
        """One point per pixel, within limits."""
        return min(max(self.width, _FEWEST_POINTS), _MOST_POINTS)

    @property
    def steps(self) -> dict[str, int]:
        """Query parameters of the range of steps; empty for the whole run."""
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
    """Text forms of all series of the run, to pick from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PanelsExtension:
    """New samples for the panels in the browser."""

    updates: dict[str, list[Any]]
    """Argument of `dcc.Graph.extendData`, by panel."""
    shown: dict[str, Shown]
    read_to: int
    outgrown: bool
    """Redraw the panels when there is time."""


def read_zoom(stored: Any) -> tuple[float, float] | None:  # noqa: ANN401  JSON of a browser
    """Parse the stored range; None if it is not a range."""
    try:
        first, last = (float(end) for end in stored or ())
    except (TypeError, ValueError, OverflowError):
        return None
    return (first, last) if math.isfinite(first) and math.isfinite(last) and first < last else None


async def read_scene(
    client: CollectorApi, run_id: str, zoom: tuple[float, float] | None
) -> tuple[Run, Scene]:
    """Read the run and the scene shared by all panels.

    Raises:
        DashboardError: The collector is not available, or has no such run.
    """
    run, incidents, commands, markers = await asyncio.gather(
        client.run(run_id),
        client.incidents(run_id),
        client.commands(run_id),
        client.markers(run_id),
    )
    events = Events(incidents=incidents, commands=commands, markers=markers)
    return run, make_scene(run.attempts, run.step, events=events, zoom=zoom)


async def draw_panels(client: CollectorApi, run_id: str, view: PanelView) -> Panels:
    """Draw every panel of a run.

    Raises:
        DashboardError: The collector is not available, or has no such run.
    """
    (run, scene), infos = await asyncio.gather(
        read_scene(client, run_id, view.zoom), client.series(run_id)
    )
    series = sorted(info.series for info in infos)
    lines = choose_lines(series, view.picked)
    wanted = _all_series(lines)
    data: list[SeriesData] = []
    if wanted:
        query = SeriesQuery(series=wanted, max_points=view.max_points, **view.steps)
        data = await client.data(run_id, query)
    figures = {
        panel: line_chart(
            lines[panel],
            data,
            scene,
            log_y=_is_log(panel, view),
        )
        for panel in PANELS
    }
    return Panels(
        figures=figures,
        shown={panel: shown_in(figure) for panel, figure in figures.items()},
        read_to=_known_to(run, view.zoom, data),
        series=series,
    )


def _is_log(panel: str, view: PanelView) -> bool:
    return view.log_loss if panel == CHART_LOSS else panel == CHART_GRADIENT


def _all_series(lines: Mapping[str, Sequence[Line]]) -> tuple[str, ...]:
    found = dict.fromkeys(line.series for of_panel in lines.values() for line in of_panel)
    return tuple(found)[:_MAX_SERIES]


def _known_to(run: Run, zoom: tuple[float, float] | None, data: Sequence[SeriesData]) -> int:
    if zoom is not None and zoom[1] < run.step:
        return run.step  # later steps are not requested
    return _last_step(data, run.attempt)


def _last_step(data: Sequence[SeriesData], attempt: int) -> int:
    return max(
        (part.steps[-1] for part in data if part.attempt == attempt and part.steps), default=0
    )


async def extend_panels(client: CollectorApi, run_id: str, drawn: Drawn) -> PanelsExtension | None:
    """Read only the newest samples; None if there are none.

    If the run has started another attempt, nothing is added and the panels need a redraw.

    Raises:
        DashboardError: The collector is not available, or has no such run.
    """
    panels = drawn["panels"]
    series = tuple(
        dict.fromkeys(line["series"] for shown in panels.values() for line in shown["lines"])
    )[:_MAX_SERIES]
    attempt = next((shown["attempt"] for shown in panels.values()), None)
    if not series or attempt is None:
        # Drawn before the first sample: there may be series now.
        return _needs_redraw(drawn)
    query = SeriesQuery(
        series=series,
        attempt=attempt,
        from_step=max(0, drawn["read_to"] - _OVERLAP_STEPS),
        max_points=_MOST_POINTS,  # not every step after hours of sleep
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
        return _needs_redraw(drawn) if is_past else None
    read_to = max(drawn["read_to"], _last_step(data, attempt))
    return PanelsExtension(updates=updates, shown=after, read_to=read_to, outgrown=outgrown)


def _needs_redraw(drawn: Drawn) -> PanelsExtension:
    return PanelsExtension(
        updates={}, shown=drawn["panels"], read_to=drawn["read_to"], outgrown=True
    )


def shows_newest(zoom: tuple[float, float] | None, read_to: int) -> bool:
    """Tell whether new samples are in view, not cut off by a zoom into the past."""
    return zoom is None or zoom[1] >= read_to


_REDRAW_SECONDS = 2.0
"""Minimum interval between redraws of outgrown charts."""
VIEW_INPUTS = {
    "width": (ids.CHART_WIDTH, "data"),
    "zoom": (ids.RUN_RANGE, "data"),
    "picked": (ids.PICKED, "value"),
    "log": (ids.LOG_LOSS, "checked"),
}
"""Component and property of each input of `PanelView`."""
SHOWN_ELSEWHERE = (MissingError, SignInRequiredError)
"""Errors that the page shows as a whole."""


def read_view(
    width: int | None,
    zoom: list[float] | None,
    picked: list[str] | None = None,
    log: bool | None = None,
) -> PanelView:
    """Read width, zoom and selections.

    Raises:
        PreventUpdate: The page is not laid out yet.
    """
    if width is None:
        raise PreventUpdate
    return PanelView(
        width=width, zoom=read_zoom(zoom), picked=tuple(picked or ()), log_loss=bool(log)
    )


def register(app: Dash, collector: Collector, clock: Clock) -> None:
    """Register the callbacks."""
    _register_drawing(app, collector, clock)
    _register_extending(app, collector, clock)


def _register_drawing(app: Dash, collector: Collector, clock: Clock) -> None:
    @app.callback(
        output=[
            *(Output(panel, "figure") for panel in PANELS),
            Output(ids.CHART_PICKED, "style"),
            Output(ids.SHOWN, "data"),
            Output(ids.PICKED, "data"),
            Output(ids.CHARTS_PROBLEM, "children"),
        ],
        inputs={
            "_redraw": Input(ids.REDRAW, "data"),
            "decisions": Input(ids.LIVE_DECISIONS, "data"),
            "view": {name: Input(*prop) for name, prop in VIEW_INPUTS.items()},
        },
        state={"run_id": State(ids.RUN_ID, "data"), "shown": State(ids.SHOWN, "data")},
    )
    async def draw(
        _redraw: Any,  # noqa: ANN401  JSON, only its change matters
        decisions: Any,  # noqa: ANN401  likewise
        view: dict[str, Any],
        run_id: str,
        shown: dict[str, Any] | None,
    ) -> tuple[Any, ...]:
        seen = read_view(**view)
        try:
            panels = await draw_panels(collector.for_request(), run_id, seen)
        except SHOWN_ELSEWHERE as error:
            raise PreventUpdate from error
        except DashboardError as error:
            missed = _missed(clock) if shown else no_update
            return *[no_update] * (len(PANELS) + 1), missed, no_update, small_problem(error)
        drawn = {
            "number": (shown or {}).get("number", 0) + 1,
            "panels": panels.shown,
            "read_to": panels.read_to,
            "drawn_at": clock.monotonic(),
            "series": fingerprint("\n".join(panels.series)),
            "asked": {"view": view, "decisions": decisions},
        }
        # There may be thousands of series; they rarely change.
        is_known = (shown or {}).get("series") == drawn["series"]
        series = no_update if is_known else list(panels.series)
        figures = [panels.figures[panel] for panel in PANELS]
        return *figures, _style(seen), drawn, series, None


def _missed(clock: Clock) -> Patch:
    """Mark the panels on the page as out of date.

    Only these two fields are replaced, since the panels may have been extended meanwhile. The new
    `drawn_at` invalidates an extension in progress.
    """
    missed = Patch()
    missed["asked"] = None
    missed["drawn_at"] = clock.monotonic()
    return missed


def _style(view: PanelView) -> dict[str, Any]:
    """Hide the panel of picked series while it is empty."""
    return {"height": HEIGHT} if view.picked else {"display": "none"}


def _register_extending(app: Dash, collector: Collector, clock: Clock) -> None:
    @app.callback(
        output=[Output(ids.EXTENSION, "data"), Output(ids.REDRAW, "data")],
        inputs={
            "_updates": [Input(ids.LIVE_FRAMES, "data"), Input(ids.CLOCK, "n_intervals")],
        },
        state={
            "run_id": State(ids.RUN_ID, "data"),
            "shown": State(ids.SHOWN, "data"),
            "asked": {
                "view": {name: State(*prop) for name, prop in VIEW_INPUTS.items()},
                "decisions": State(ids.LIVE_DECISIONS, "data"),
            },
        },
        prevent_initial_call=True,
    )
    async def extend(
        _updates: Any,  # noqa: ANN401  JSON, only its change matters
        run_id: str,
        shown: Any,  # noqa: ANN401  a `Drawn`, by way of the browser
        asked: dict[str, Any],
    ) -> tuple[Any, Any]:
        now = clock.monotonic()
        if _is_other(shown, asked):
            if shown and _drawn_just_now(shown, now):
                raise PreventUpdate
            return no_update, now
        zoom = read_zoom(asked["view"]["zoom"])
        if not shown or not shows_newest(zoom, shown["read_to"]):
            raise PreventUpdate
        try:
            extension = await extend_panels(collector.for_request(), run_id, shown)
        except DashboardError as error:
            raise PreventUpdate from error
        if extension is None:
            raise PreventUpdate
        update = {
            "number": shown["number"],
            "updates": extension.updates,
            "shown": {
                **shown,
                "number": shown["number"] + 1,
                "panels": extension.shown,
                "read_to": extension.read_to,
            },
        }
        is_due = extension.outgrown and not _drawn_just_now(shown, now)
        return update, now if is_due else no_update

    # In the browser, which drops extensions of figures that were replaced meanwhile.
    app.clientside_callback(  # type: ignore[no-untyped-call]  # Dash has no types for it
        ClientsideFunction(namespace="stabilizer", function_name="extendPanels"),
        *(Output(panel, "extendData") for panel in PANELS),
        Output(ids.SHOWN, "data", allow_duplicate=True),
        Input(ids.EXTENSION, "data"),
        State(ids.SHOWN, "data"),
        State(ids.PANEL_NAMES, "data"),
        prevent_initial_call=True,
    )


def _is_other(shown: dict[str, Any] | None, asked: dict[str, Any]) -> bool:
    """Tell whether the panels are out of date and not being drawn.

    A failed drawing is marked. One whose response was lost is not: it is detected at clock ticks
    only, since after an update a drawing may be in progress.
    """
    if shown and shown.get("asked") is None:
        return True
    return is_tick() and (not shown or shown["asked"] != asked)


def is_tick() -> bool:
    """Tell whether the page's clock triggered the callback."""
    return ids.CLOCK in ctx.triggered_prop_ids.values()


def _drawn_just_now(shown: dict[str, Any], now: float) -> bool:
    # Negative: it was drawn before this machine started.
    return 0 <= now - float(shown["drawn_at"]) < _REDRAW_SECONDS
