"""A run's head, its incident, its commands and its log."""

from __future__ import annotations

from typing import Any

from dash import ALL, Dash, Input, Output, State, no_update
from dash.development.base_component import Component
from dash.exceptions import PreventUpdate

from dashboard import ids
from dashboard.client import Collector
from dashboard.components.problem import problem_of
from dashboard.components.run_header import run_place
from dashboard.errors import CollectorUnavailableError, DashboardError, SignInRequiredError
from dashboard.handlers.decisions import NAMES, PARTS, renewed_previews, view_run
from dashboard.handlers.renewal import only_changed
from dashboard.handlers.story import read_story
from stabilizer.clock import Clock

_HIDDEN = {"display": "none"}


def register(app: Dash, collector: Collector, clock: Clock) -> None:
    """Register what tells a run's story."""
    _register_story(app, collector, clock)
    _register_place(app, collector, clock)


def _register_story(app: Dash, collector: Collector, clock: Clock) -> None:
    @app.callback(
        output=[
            Output(ids.RUN_PROBLEM, "children"),
            Output(ids.RUN_BODY, "style"),
            *(Output(*part) for part in PARTS),
            Output({"type": ids.PREVIEW, "id": ALL}, "children"),
            Output(ids.RUN_FACTS, "data"),
        ],
        inputs={
            "_news": [Input(ids.LIVE_DECISIONS, "data"), Input(ids.CLOCK, "n_intervals")],
            "limit": Input(ids.TIMELINE_LIMIT, "data"),
        },
        state={
            "place": {"run_id": State(ids.RUN_ID, "data"), "path": State(ids.URL, "pathname")},
            "facts": State(ids.RUN_FACTS, "data"),
            "previews": State({"type": ids.PREVIEW, "id": ALL}, "id"),
        },
    )
    async def tell_story(
        _news: Any,  # noqa: ANN401  JSON, looked at for its change only
        limit: int,
        place: dict[str, Any],
        facts: dict[str, Any] | None,
        previews: list[dict[str, str]],
    ) -> tuple[Any, ...]:
        unchanged = [*[no_update] * len(PARTS), [no_update] * len(previews)]
        try:
            story = await read_story(collector.asked_now(), place["run_id"])
        except (CollectorUnavailableError, SignInRequiredError) as error:
            if facts:  # the page goes on showing what it knew; the banner tells the rest
                raise PreventUpdate from error
            return problem_of(error, place["path"] or "/"), _HIDDEN, *unchanged, no_update
        except DashboardError as error:
            return problem_of(error, place["path"] or "/"), _HIDDEN, *unchanged, None
        view = view_run(story, clock.now(), limit)
        known = (facts or {}).get("digests", {})
        parts, digests = only_changed(NAMES, view.parts, known, view.stable)
        renewed = renewed_previews(view, previews, parts)
        return None, {}, *parts, renewed, {**view.facts, "digests": digests}

    @app.callback(
        Output(ids.TIMELINE_LIMIT, "data"),
        Input(ids.TIMELINE_MORE, "n_clicks"),
        State(ids.TIMELINE_LIMIT, "data"),
        prevent_initial_call=True,
    )
    async def show_earlier(_clicks: int | None, limit: int) -> int:
        return limit * 4


def _register_place(app: Dash, collector: Collector, clock: Clock) -> None:
    @app.callback(
        Output(ids.RUN_PLACE, "children"),
        Input(ids.LIVE_FRAMES, "data"),
        Input(ids.LIVE_DECISIONS, "data"),
        Input(ids.CLOCK, "n_intervals"),
        State(ids.RUN_ID, "data"),
    )
    async def tell_place(
        _frames: Any,  # noqa: ANN401  JSON, looked at for its change only
        _news: Any,  # noqa: ANN401  likewise
        _clock: int | None,
        run_id: str,
    ) -> Component:
        try:
            return run_place(await collector.asked_now().run(run_id), clock.now())
        except DashboardError as error:
            raise PreventUpdate from error
