"""Callbacks of the list of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

from dash import ALL, Dash, Input, Output, State, html, no_update
from dash.development.base_component import Component

from dashboard import ids
from dashboard.callbacks.renewal import fingerprint
from dashboard.client import Collector, CollectorApi
from dashboard.components.problems import problem, problem_of
from dashboard.errors import DashboardError
from dashboard.figures.sparkline import sparkline_text, sparkline_uri
from dashboard.formatting import count
from dashboard.pages.runs import row_name, run_cells, run_row, runs_table
from stabilizer.clock import Clock
from stabilizer.protocol.queries import RunQuery, RunSort
from stabilizer.protocol.runs import RunState
from stabilizer.protocol.views import Overview, RunSummary

PAGE: Final = 50
MOST: Final = 500
"""Limit of one response of the collector; beyond it, runs are found by search."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunsFilter:
    """Filters and sort order above the list."""

    search: str = ""
    states: tuple[str, ...] = ()
    sort: str = RunSort.CREATED_AT.value
    limit: int = PAGE

    def query(self) -> RunQuery:
        """Return the query; invalid values are ignored."""
        states = tuple(RunState(state) for state in self.states if state in set(RunState))
        sort = RunSort(self.sort) if self.sort in set(RunSort) else RunSort.CREATED_AT
        return RunQuery(
            name=self.search.strip()[:200],
            states=states,
            sort=sort,
            descending=sort is not RunSort.NAME,
            limit=min(max(self.limit, PAGE), MOST),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunsView:
    """Content of the page."""

    body: Any
    """The table, or `no_update` if its rows are updated on their own."""
    cells: Sequence[Any]
    """New cells of each row on the page, or `no_update`."""
    names: Sequence[Any]
    """Likewise their CSS classes."""
    shown: Mapping[str, str]
    """Fingerprints of the rows by run id, in row order."""
    count: str
    has_more: bool


async def list_runs(
    client: CollectorApi,
    chosen: RunsFilter,
    shown: Mapping[str, str] | None,
    now: datetime,
) -> RunsView:
    """Read the list, and build the rows that changed.

    Raises:
        DashboardError: The collector is not available.
    """
    overview = await client.overview(chosen.query())
    fingerprints = {summary.run.id: _fingerprint(summary) for summary in overview.rows}
    body, rows = _drawing(overview, fingerprints, shown or {}, chosen, now)
    return RunsView(
        body=body,
        cells=[no_update if row is None else row[0] for row in rows],
        names=[no_update if row is None else row[1] for row in rows],
        shown=fingerprints,
        count=_count(overview),
        has_more=overview.total > len(overview.rows) and chosen.limit < MOST,
    )


_Row: TypeAlias = tuple[list[Component], str]
"""Cells of a row and its CSS class."""


def _drawing(
    overview: Overview,
    fingerprints: Mapping[str, str],
    shown: Mapping[str, str],
    chosen: RunsFilter,
    now: datetime,
) -> tuple[Any, list[_Row | None]]:
    """Return the table or `no_update`, and the new content of each row on the page.

    Dash rebuilds everything within a replaced component, so that hover and clicks on it are lost.
    If the number of rows stays the same, only changed rows are replaced.
    """
    nothing: list[_Row | None] = [None] * len(shown)
    if not overview.rows:
        return _nothing(chosen), nothing
    if len(fingerprints) != len(shown):
        rows = [run_row(place, *_row(summary, now)) for place, summary in enumerate(overview.rows)]
        return runs_table(rows), nothing
    places = zip(overview.rows, fingerprints.items(), shown.items(), strict=True)
    return no_update, [None if new == old else _row(summary, now) for summary, new, old in places]


def _row(summary: RunSummary, now: datetime) -> _Row:
    line = summary.sparkline
    picture = html.Img(src=sparkline_uri(line), alt=sparkline_text(line), className="sparkline")
    return run_cells(summary, now, picture), row_name(summary)


def _fingerprint(summary: RunSummary) -> str:
    """Return a fingerprint of all that a row shows; last seen to the second."""
    seen = int(summary.run.last_seen_at.timestamp())
    text = summary.model_dump_json(exclude={"run": {"last_seen_at", "config"}})
    return fingerprint(f"{seen}{text}")


def _count(overview: Overview) -> str:
    total, rows = overview.total, len(overview.rows)
    return f"{count(rows)} of {count(total)}" if rows < total else count(total)


def _nothing(chosen: RunsFilter) -> Component:
    if chosen.search.strip() or chosen.states:
        return problem(
            "No matching runs",
            "Try another part of the name, key or id, or clear the state filter.",
            ("Show all runs", "/"),
            reload=True,
        )
    return problem(
        "No runs yet",
        "Add one line to a training job: Trainer(callbacks=[StabilizerCallback(<address of the "
        'collector>, run="my-run")]). It appears here with its first step.',
        ("Open the control page", "/control"),
    )


def register(app: Dash, collector: Collector, clock: Clock) -> None:
    """Register the callbacks."""
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
            "_updates": [
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
        _updates: Any,  # noqa: ANN401  JSON, only its change matters
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
            view = await list_runs(collector.for_request(), chosen, shown, clock.now())
        except DashboardError as error:
            # The page keeps its content; only an empty page shows the error.
            if shown:
                return no_update, rows, rows, None, no_update, no_update, no_update
            return None, rows, rows, problem_of(error, "/"), no_update, "", "none"
        if shown is not None:
            rows = list(view.cells)
        names = rows if shown is None else list(view.names)
        more = "block" if view.has_more else "none"
        return view.body, rows, names, None, view.shown, view.count, more
