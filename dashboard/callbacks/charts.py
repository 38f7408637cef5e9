"""A run's panels and its map."""

from __future__ import annotations

from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, Patch, State, ctx, no_update
from dash.exceptions import PreventUpdate

from dashboard import ids
from dashboard.client import Collector
from dashboard.components.problem import small_problem
from dashboard.errors import DashboardError, MissingError, SignInRequiredError
from dashboard.figures.chart import HEIGHT
from dashboard.figures.empty import empty_figure
from dashboard.handlers.charts import (
    Look,
    draw_panels,
    extend_panels,
    looks_at_the_newest,
    read_zoom,
)
from dashboard.handlers.maps import MapLook, draw_maps
from dashboard.handlers.renewal import fingerprint
from stabilizer.clock import Clock

PANELS = ids.PANELS
_REDRAW_SECONDS = 2.0
"""A chart that its lines have outgrown is drawn anew no more often than this."""
_MAP_STEPS = 10
"""Layers are measured every so many steps: asking more often shows nothing else."""
_VIEW = {
    "width": (ids.CHART_WIDTH, "data"),
    "zoom": (ids.RUN_RANGE, "data"),
    "picked": (ids.PICKED, "value"),
    "log": (ids.LOG_LOSS, "checked"),
}
"""How a person looks at the panels: component and property."""
_QUIET = (MissingError, SignInRequiredError)
"""Told by the page as a whole."""


def _look(
    width: int | None,
    zoom: list[float] | None,
    picked: list[str] | None = None,
    log: bool | None = None,
) -> Look:
    if width is None:  # the page has not been laid out yet
        raise PreventUpdate
    return Look(width=width, zoom=read_zoom(zoom), picked=tuple(picked or ()), log_loss=bool(log))


def register(app: Dash, collector: Collector, clock: Clock) -> None:
    """Register what draws and extends the charts."""
    _register_drawing(app, collector, clock)
    _register_extending(app, collector, clock)
    _register_map(app, collector)


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
            "view": {name: Input(*prop) for name, prop in _VIEW.items()},
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
        look = _look(**view)
        try:
            panels = await draw_panels(collector.asked_now(), run_id, look)
        except _QUIET as error:
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
        return *figures, _style(look), drawn, series, None


def _missed(clock: Clock) -> Patch:
    """Mark what a page has as other than what it should show.

    It may have been extended since it was read here, so that only these two parts are replaced;
    by the second of them, an extension of it that is still under way is left out.
    """
    missed = Patch()
    missed["asked"] = None
    missed["drawn_at"] = clock.monotonic()
    return missed


def _style(look: Look) -> dict[str, Any]:
    """Give the panel of picked series room once there is something in it."""
    return {"height": HEIGHT} if look.picked else {"display": "none"}


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
                "view": {name: State(*prop) for name, prop in _VIEW.items()},
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
    return _is_tick() and (not shown or shown["asked"] != asked)


def _is_tick() -> bool:
    return ids.CLOCK in ctx.triggered_prop_ids.values()


def _drawn_just_now(shown: dict[str, Any], now: float) -> bool:
    # Less than nothing: it was drawn before this machine started.
    return 0 <= now - float(shown["drawn_at"]) < _REDRAW_SECONDS


def _register_map(app: Dash, collector: Collector) -> None:
    @app.callback(
        output=[
            Output(ids.HEATMAP, "figure"),
            Output(ids.HEATMAP, "style"),
            Output(ids.CHART_ENTROPY, "figure"),
            Output(ids.HEATMAP_METRIC, "data"),
            Output(ids.HEATMAP_METRIC, "value"),
            Output(ids.HEATMAP_KIND, "data"),
            Output(ids.HEATMAP_KIND, "value"),
            Output(ids.HEATMAP_SHOWN, "data"),
            Output(ids.HEATMAP_PROBLEM, "children"),
        ],
        inputs={
            "_clock": Input(ids.CLOCK, "n_intervals"),
            "frames": Input(ids.LIVE_FRAMES, "data"),
            "view": {name: Input(*_VIEW[name]) for name in ("width", "zoom")},
            "chosen": {
                "metric": Input(ids.HEATMAP_METRIC, "value"),
                "kind": Input(ids.HEATMAP_KIND, "value"),
                "colouring": Input(ids.HEATMAP_COLOURING, "value"),
                "decisions": Input(ids.LIVE_DECISIONS, "data"),
            },
        },
        state={"run_id": State(ids.RUN_ID, "data"), "shown": State(ids.HEATMAP_SHOWN, "data")},
    )
    async def draw_map(
        _clock: int | None,
        frames: dict[str, Any] | None,
        view: dict[str, Any],
        chosen: dict[str, Any],
        run_id: str,
        shown: dict[str, Any] | None,
    ) -> tuple[Any, ...]:
        look = _look(**view)
        asked = {**view, **chosen}
        is_same = shown is not None and shown["asked"] == asked
        if shown and is_same and (_is_tick() or not _has_moved(frames, shown, look.zoom)):
            raise PreventUpdate
        try:
            maps = await draw_maps(collector.asked_now(), run_id, look, _wanted(chosen))
        except _QUIET as error:
            raise PreventUpdate from error
        except DashboardError as error:
            missed = {**shown, "asked": None} if shown else no_update
            return *[no_update] * 7, missed, small_problem(error)
        figure = maps.heatmap or empty_figure("nothing is measured on modules")
        return (
            figure,
            {"height": figure["layout"]["height"]},
            maps.entropy,
            list(maps.metrics),
            maps.metric,
            list(maps.kinds),
            maps.kind,
            {"asked": {**asked, "metric": maps.metric, "kind": maps.kind}, "step": maps.step},
            None,
        )


def _wanted(chosen: dict[str, Any]) -> MapLook:
    colouring = chosen["colouring"] or "default"
    return MapLook(metric=chosen["metric"], kind=chosen["kind"], colouring=colouring)


def _has_moved(
    frames: dict[str, Any] | None, shown: dict[str, Any], zoom: tuple[float, float] | None
) -> bool:
    """Whether the layers have been measured since the map was drawn."""
    step = (frames or {}).get("step") or 0
    if zoom is not None and zoom[1] < shown["step"]:
        return False
    return not step or abs(step - shown["step"]) >= _MAP_STEPS
