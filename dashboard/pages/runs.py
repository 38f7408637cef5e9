"""The list of runs."""

from __future__ import annotations

import dash_mantine_components as dmc
from dash import dcc, html
from dash.development.base_component import Component

from dashboard import ids
from stabilizer.protocol.queries import RunSort
from stabilizer.protocol.runs import RunState

_SORTS = {
    RunSort.CREATED_AT: "Newest first",
    RunSort.LAST_SEEN_AT: "Last seen",
    RunSort.STEP: "Step",
    RunSort.NAME: "Name",
}


def runs(**_: object) -> Component:
    """Build the page; the rows come with the first news."""
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
