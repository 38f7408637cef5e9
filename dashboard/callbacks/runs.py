"""The list of runs."""

from __future__ import annotations

from typing import Any

from dash import ALL, Dash, Input, Output, State, no_update

from dashboard import ids
from dashboard.client import Collector
from dashboard.components.problem import problem_of
from dashboard.errors import DashboardError
from dashboard.handlers.runs import MOST, PAGE, RunsFilter, list_runs
from stabilizer.clock import Clock


def register(app: Dash, collector: Collector, clock: Clock) -> None:
    """Register what fills and renews the list."""
    _register_list(app, collector, clock)

    @app.callback(
        Output(ids.RUNS_LIMIT, "data"),
        Input(ids.RUNS_MORE, "n_clicks"),
        State(ids.RUNS_LIMIT, "data"),
        prevent_initial_call=True,
    )
    async def show_more(_clicks: int | None, limit: int | None) -> int:
        return min((limit or PAGE) * 2, MOST)


def _register_list(app: Dash, collector: Collector, clock: Clock) -> None:
    @app.callback(
        output=[
            Output(ids.RUNS_BODY, "children"),
            Output({"type": ids.RUN_ROW, "place": ALL}, "children"),
            Output({"type": ids.RUN_ROW, "place": ALL}, "className"),
            Output(ids.RUNS_PROBLEM, "children"),
            Output(ids.RUNS_SHOWN, "data"),
            Output(ids.RUNS_COUNT, "children"),
            Output(ids.RUNS_MORE, "display"),
        ],
        inputs={
            "_news": [
                Input(ids.LIVE_FRAMES, "data"),
                Input(ids.LIVE_DECISIONS, "data"),
                Input(ids.CLOCK, "n_intervals"),
            ],
            "filters": {
                "search": Input(ids.RUNS_SEARCH, "value"),
                "states": Input(ids.RUNS_STATES, "value"),
                "sort": Input(ids.RUNS_SORT, "value"),
                "limit": Input(ids.RUNS_LIMIT, "data"),
            },
        },
        state={
            "shown": State(ids.RUNS_SHOWN, "data"),
            "places": State({"type": ids.RUN_ROW, "place": ALL}, "id"),
        },
    )
    async def show_runs(
        _news: Any,  # noqa: ANN401  JSON, looked at for its change only
        filters: dict[str, Any],
        shown: dict[str, str] | None,
        places: list[dict[str, Any]],
    ) -> tuple[Any, ...]:
        chosen = RunsFilter(
            search=filters["search"] or "",
            states=tuple(filters["states"] or ()),
            sort=filters["sort"] or "",
            limit=filters["limit"] or PAGE,
        )
        rows = [no_update] * len(places)
        if len(places) != len(shown or {}):  # the page is being drawn
            shown = None
        try:
            view = await list_runs(collector.asked_now(), chosen, shown, clock.now())
        except DashboardError as error:
            # What the page knew stays; only a page that knew nothing is told here.
            if shown:
                return no_update, rows, rows, None, no_update, no_update, no_update
            return None, rows, rows, problem_of(error, "/"), no_update, "", "none"
        if shown is not None:
            rows = list(view.cells)
        names = rows if shown is None else list(view.names)
        more = "block" if view.has_more else "none"
        return view.body, rows, names, None, view.shown, view.count, more
