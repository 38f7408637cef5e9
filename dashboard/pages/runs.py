"""The page with the list of runs."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

import dash_mantine_components as dmc
from dash import dcc, html
from dash.development.base_component import Component

from dashboard import ids
from dashboard.components.elements import (
    incident_state_badge,
    mode_badge,
    run_state_badge,
    severity_badge,
    since,
)
from dashboard.formatting import count
from dashboard.text import command_sentence, command_title, phrase
from stabilizer.protocol.queries import RunSort
from stabilizer.protocol.runs import RunState
from stabilizer.protocol.views import RunSummary

_SORTS = {
    RunSort.CREATED_AT: "Newest first",
    RunSort.LAST_SEEN_AT: "Last seen",
    RunSort.STEP: "Step",
    RunSort.NAME: "Name",
}


def runs(**_: object) -> Component:
    """Build the page; callbacks fill its parts."""
    return dmc.Stack(
        [
            dmc.Group(
                [dmc.Title("Runs", order=2), dmc.Text(id=ids.RUNS_COUNT, size="sm", c="dimmed")],
                align="baseline",
                gap="sm",
            ),
            _filters(),
            dcc.Store(id=ids.RUNS_SHOWN),
            dcc.Store(id=ids.RUNS_LIMIT, data=50),
            html.Div(id=ids.RUNS_PROBLEM),
            html.Div(dmc.Skeleton(height=240), id=ids.RUNS_BODY),
            dmc.Button(
                "Show more",
                id=ids.RUNS_MORE,
                variant="default",
                display="none",
                style={"alignSelf": "center"},
            ),
        ],
        gap="sm",
    )


def _filters() -> Component:
    return dmc.Group(
        [
            dmc.TextInput(
                id=ids.RUNS_SEARCH,
                placeholder="Name, key or id",
                debounce=250,
                className="runs-search",
                **{"aria-label": "Find a run by name, key or id"},
            ),
            dmc.MultiSelect(
                id=ids.RUNS_STATES,
                data=[{"value": state.value, "label": state.value} for state in RunState],
                value=[],
                placeholder="Any state",
                clearable=True,
                className="runs-states",
                **{"aria-label": "Show runs in these states only"},
            ),
            dmc.Select(
                id=ids.RUNS_SORT,
                data=[{"value": sort.value, "label": text} for sort, text in _SORTS.items()],
                value=RunSort.CREATED_AT.value,
                allowDeselect=False,
                className="runs-sort",
                **{"aria-label": "Order of the list"},
            ),
        ],
        gap="xs",
    )


_COLUMNS: Final = (
    "Run",
    "State",
    "Step",
    "Attempt",
    "Phase",
    "Open incident",
    "Last intervention",
    "Loss",
)


def runs_table(rows: list[Component]) -> Component:
    """Build the table with its head."""
    head = html.Thead(html.Tr([html.Th(name, scope="col") for name in _COLUMNS]))
    return html.Table([head, html.Tbody(rows)], className="runs-table")


def run_row(place: int, cells: list[Component], name: str) -> Component:
    """Build a row; its id allows callbacks to update it on its own."""
    return html.Tr(cells, id={"type": ids.RUN_ROW, "place": place}, className=name)


def row_name(summary: RunSummary) -> str:
    """Return the CSS class of a row: runs that need approval are highlighted."""
    return "needs-approval" if summary.num_proposed else ""


def run_cells(summary: RunSummary, now: datetime, picture: Component) -> list[Component]:
    """Build the cells of a run's row.

    Args:
        summary: Summary of the run.
        now: Current time.
        picture: Sparkline of its loss.
    """
    run = summary.run
    cells = (
        _name(summary),
        html.Div([run_state_badge(run.state), mode_badge(run.mode)], className="badges"),
        html.Div(
            [
                html.Span(count(run.step), className="number"),
                dmc.Text(
                    since(run.last_seen_at, now),
                    span=True,
                    size="xs",
                    c="dimmed",
                    className="under",
                ),
            ],
        ),
        html.Span(count(run.attempt), className="number"),
        html.Span(summary.phase) if summary.phase else _nothing(),
        _incident(summary),
        _intervention(summary),
        picture,
    )
    return [html.Td(cell, **_labelled(name)) for name, cell in zip(_COLUMNS, cells, strict=True)]


def _name(summary: RunSummary) -> Component:
    run = summary.run
    under = [run.key] if run.key else []
    children: list[Component] = [
        dcc.Link(run.name, href=f"/runs/{quote(run.id, safe='')}", className="run-link")
    ]
    if under:
        children.append(dmc.Text(under[0], size="xs", c="dimmed", className="under"))
    if summary.num_proposed:
        more = f" ({summary.num_proposed})" if summary.num_proposed > 1 else ""
        children.append(
            html.Span(
                f"Approval needed{more}",
                className="approval-needed",
            )
        )
    return html.Div(children)


def _incident(summary: RunSummary) -> Component:
    incident = summary.incident
    if incident is None:
        return _nothing()
    rule = incident.rules[0].replace("_", " ") if incident.rules else "no rule"
    more = f" and {len(incident.rules) - 1} more" if len(incident.rules) > 1 else ""
    return html.Div(
        [
            html.Div(
                [severity_badge(incident.severity), incident_state_badge(incident.state)],
                className="badges",
            ),
            dmc.Text(
                f"{rule}{more}, since step {count(incident.first_step)}",
                size="xs",
                c="dimmed",
                className="under",
            ),
        ],
        title=f"{phrase(incident.decision)}: {phrase(incident.reason)}",
    )


def _intervention(summary: RunSummary) -> Component:
    command = summary.last_intervention
    if command is None:
        return _nothing()
    step = command.issued_step
    if command.result is not None and command.result.applied_step is not None:
        step = command.result.applied_step
    at = "" if step is None else f"at step {count(step)}"
    return html.Div(
        [
            html.Span(command_title(command.parameters)),
            dmc.Text(at, size="xs", c="dimmed", className="under"),
        ],
        title=command_sentence(command.parameters, global_batch=summary.run.global_batch),
    )


def _nothing() -> Component:
    """Fill an empty cell; narrow screens hide it."""
    return html.Span("\N{EN DASH}", className="nothing")


def _labelled(name: str) -> dict[str, Any]:
    """Label a cell for narrow screens, which hide the table head."""
    return {"data-label": name}
