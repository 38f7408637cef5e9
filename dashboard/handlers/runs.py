"""The list of runs: what to ask for, and which rows must be drawn anew."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from dash import Patch, html, no_update
from dash.development.base_component import Component

from dashboard.client import CollectorClient
from dashboard.components.problem import problem
from dashboard.components.runs_table import run_row, runs_table
from dashboard.figures.sparkline import sparkline_text, sparkline_uri
from dashboard.words.amounts import ago, count
from stabilizer.protocol.queries import RunQuery, RunSort
from stabilizer.protocol.runs import RunState
from stabilizer.protocol.views import Overview, RunSummary

PAGE: Final = 50
MOST: Final = 500
"""As many as one answer of the collector may hold; who has more finds by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunsFilter:
    """What a person has chosen above the list."""

    search: str = ""
    states: tuple[str, ...] = ()
    sort: str = RunSort.CREATED_AT.value
    limit: int = PAGE

    def query(self) -> RunQuery:
        """Return what to ask for; what a page cannot have chosen is left out."""
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
    """What goes to the page."""

    body: Any
    """The table, a patch of its rows, or no update."""
    shown: Mapping[str, str]
    """Run id to the fingerprint of its row, in the order of the rows."""
    count: str
    has_more: bool


async def list_runs(
    client: CollectorClient,
    chosen: RunsFilter,
    shown: Mapping[str, str] | None,
    now: datetime,
) -> RunsView:
    """Ask for the list, and draw what has changed in it.

    Raises:
        DashboardError: The collector cannot be asked.
    """
    overview = await client.overview(chosen.query())
    fingerprints = {summary.run.id: _fingerprint(summary, now) for summary in overview.rows}
    return RunsView(
        body=_body(overview, fingerprints, shown or {}, chosen, now),
        shown=fingerprints,
        count=_count(overview),
        has_more=overview.total > len(overview.rows) and chosen.limit < MOST,
    )


def _body(
    overview: Overview,
    fingerprints: Mapping[str, str],
    shown: Mapping[str, str],
    chosen: RunsFilter,
    now: datetime,
) -> Any:  # noqa: ANN401  a component, a patch or no update
    if not overview.rows:
        return _nothing(chosen)
    if len(fingerprints) != len(shown):
        return runs_table([_row(summary, now) for summary in overview.rows])
    places = zip(fingerprints.items(), shown.items(), strict=True)
    changed = [
        (index, overview.rows[index]) for index, (new, old) in enumerate(places) if new != old
    ]
    return _patch(changed, now) if changed else no_update


def _row(summary: RunSummary, now: datetime) -> Component:
    line = summary.sparkline
    picture = html.Img(src=sparkline_uri(line), alt=sparkline_text(line), className="sparkline")
    return run_row(summary, now, picture)


def _patch(changed: Sequence[tuple[int, RunSummary]], now: datetime) -> Patch:
    patch = Patch()
    for index, summary in changed:
        # The path from the holder of the table to a row, as `runs_table` builds it.
        patch["props"]["children"][1]["props"]["children"][index] = _row(summary, now)
    return patch


def _fingerprint(summary: RunSummary, now: datetime) -> str:
    """Name everything that a row shows, "3 min ago" in the words that it shows."""
    age = ago(summary.run.last_seen_at, now)
    text = summary.model_dump_json(exclude={"run": {"last_seen_at", "config"}})
    return hashlib.blake2b(f"{age}{text}".encode(), digest_size=8).hexdigest()


def _count(overview: Overview) -> str:
    total, rows = overview.total, len(overview.rows)
    return f"{count(rows)} of {count(total)}" if rows < total else count(total)


def _nothing(chosen: RunsFilter) -> Component:
    if chosen.search.strip() or chosen.states:
        return problem(
            "No run fits",
            "Look for another part of its name, key or id, or take every state.",
            ("Show all runs", "/"),
            anew=True,
        )
    return problem(
        "No run has registered yet",
        "Add one line to a training job: Trainer(callbacks=[StabilizerCallback(<address of the "
        'collector>, run="my-run")]). It appears here with its first step.',
        ("Look at the switch and the audit log", "/control"),
    )
