"""Which series a run's panels draw, and how each line is called."""

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
"""More lines than these in one panel nobody tells apart."""


def choose_lines(series: Iterable[str], picked: Sequence[str]) -> Mapping[str, tuple[Line, ...]]:
    """Say which lines each panel has.

    Args:
        series: Text forms of all that the run has.
        picked: Text forms that a person has chosen for the last panel; unknown ones are left out.
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
    """Find the loss; of a job that gives only what it backpropagates, that."""
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
    """Name a line by what tells it from its neighbours."""
    if not key.labels:
        return "all" if key.metric in (Metric.LOSS, Metric.Z_LOSS) else key.metric
    return ", ".join(key.labels.values()).strip() or str(key)


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
    """Last step that is known; for a view at the past alone, where the run stood."""
    drawn_at: float
    """Of the last whole drawing or attempt at one, in seconds; by the clock of whoever draws."""
    asked: dict[str, Any] | None
    """What was asked for; None once something else has been asked for and could not be drawn."""
    series: str
    """Fingerprint of all that can be picked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PanelView:
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
class PanelsExtension:
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
    client: CollectorApi, run_id: str, zoom: tuple[float, float] | None
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


async def draw_panels(client: CollectorApi, run_id: str, view: PanelView) -> Panels:
    """Draw every panel of a run.

    Raises:
        DashboardError: The collector cannot be asked, or has no such run.
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
        return run.step  # what comes after the range is not asked for
    return _last_step(data, run.attempt)


def _last_step(data: Sequence[SeriesData], attempt: int) -> int:
    return max(
        (part.steps[-1] for part in data if part.attempt == attempt and part.steps), default=0
    )


async def extend_panels(client: CollectorApi, run_id: str, drawn: Drawn) -> PanelsExtension | None:
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
    return PanelsExtension(updates=updates, shown=after, read_to=read_to, outgrown=outgrown)


def _to_draw_anew(drawn: Drawn) -> PanelsExtension:
    return PanelsExtension(
        updates={}, shown=drawn["panels"], read_to=drawn["read_to"], outgrown=True
    )


def looks_at_the_newest(zoom: tuple[float, float] | None, read_to: int) -> bool:
    """Whether new samples would be seen: not by who has zoomed into the past."""
    return zoom is None or zoom[1] >= read_to


_REDRAW_SECONDS = 2.0
"""A chart that its lines have outgrown is drawn anew no more often than this."""
VIEW_INPUTS = {
    "width": (ids.CHART_WIDTH, "data"),
    "zoom": (ids.RUN_RANGE, "data"),
    "picked": (ids.PICKED, "value"),
    "log": (ids.LOG_LOSS, "checked"),
}
"""How a person looks at the panels: component and property."""
SHOWN_ELSEWHERE = (MissingError, SignInRequiredError)
"""Told by the page as a whole."""


def read_view(
    width: int | None,
    zoom: list[float] | None,
    picked: list[str] | None = None,
    log: bool | None = None,
) -> PanelView:
    """Read how the user looks at the panels; wait until the page is laid out."""
    if width is None:  # the page has not been laid out yet
        raise PreventUpdate
    return PanelView(
        width=width, zoom=read_zoom(zoom), picked=tuple(picked or ()), log_loss=bool(log)
    )


def register(app: Dash, collector: Collector, clock: Clock) -> None:
    """Register what draws and extends the charts."""
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
        _redraw: Any,  # noqa: ANN401  JSON, looked at for its change only
        decisions: Any,  # noqa: ANN401  likewise
        view: dict[str, Any],
        run_id: str,
        shown: dict[str, Any] | None,
    ) -> tuple[Any, ...]:
        seen = read_view(**view)
        try:
            panels = await draw_panels(collector.asked_now(), run_id, seen)
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
        # There may be thousands of them, and hardly ever others than before.
        is_known = (shown or {}).get("series") == drawn["series"]
        series = no_update if is_known else list(panels.series)
        figures = [panels.figures[panel] for panel in PANELS]
        return *figures, _style(seen), drawn, series, None


def _missed(clock: Clock) -> Patch:
    """Mark what a page has as other than what it should show.

    It may have been extended since it was read here, so that only these two parts are replaced;
    by the second of them, an extension of it that is still under way is left out.
    """
    missed = Patch()
    missed["asked"] = None
    missed["drawn_at"] = clock.monotonic()
    return missed


def _style(view: PanelView) -> dict[str, Any]:
    """Give the panel of picked series room once there is something in it."""
    return {"height": HEIGHT} if view.picked else {"display": "none"}


def _register_extending(app: Dash, collector: Collector, clock: Clock) -> None:
    @app.callback(
        output=[Output(ids.EXTENSION, "data"), Output(ids.REDRAW, "data")],
        inputs={
            "_news": [Input(ids.LIVE_FRAMES, "data"), Input(ids.CLOCK, "n_intervals")],
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
        _news: Any,  # noqa: ANN401  JSON, looked at for its change only
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
        if not shown or not looks_at_the_newest(zoom, shown["read_to"]):
            raise PreventUpdate
        try:
            extension = await extend_panels(collector.asked_now(), run_id, shown)
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

    # In the browser: what was read for a figure that has been replaced meanwhile is left out.
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
    """Whether the panels show other than what was asked for, and nobody is drawing them.

    A drawing that failed says so. One whose answer never came does not: that is looked after with
    the clock alone, since with news a drawing may just be under way.
    """
    if shown and shown.get("asked") is None:
        return True
    return is_tick() and (not shown or shown["asked"] != asked)


def is_tick() -> bool:
    """Tell whether the page's clock triggered the callback."""
    return ids.CLOCK in ctx.triggered_prop_ids.values()


def _drawn_just_now(shown: dict[str, Any], now: float) -> bool:
    # Less than nothing: it was drawn before this machine started.
    return 0 <= now - float(shown["drawn_at"]) < _REDRAW_SECONDS
