"""The page of a run: charts, incidents, commands, timeline and actions."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from urllib.parse import unquote

import dash_mantine_components as dmc
from dash import dcc, html
from dash.development.base_component import Component

from dashboard import ids
from dashboard.actions import run_dialogs
from dashboard.components.elements import facts_line, mode_badge, run_state_badge, since
from dashboard.figures.figure import CONFIG, empty_figure
from dashboard.figures.line_chart import HEIGHT
from dashboard.formatting import count
from stabilizer.protocol.runs import Phase, RewindKind, Run, RunState

_CHARTS: Final = (
    (ids.CHART_LOSS, "Loss", "nats, by source"),
    (ids.CHART_GRADIENT, "Gradient norm", "L2, before clipping"),
    (ids.CHART_RATE, "Learning rate", "left: per group; right: lr_scale"),
    (ids.CHART_Z_LOSS, "z-loss", "mean of logsumexp(logits)\N{SUPERSCRIPT TWO}"),
    (ids.CHART_ENTROPY, "Attention entropy", "lowest head of each tower, 0 to 1"),
)
_TIMELINE_ENTRIES: Final = 40


def run(run_id: str | None = None, **_: object) -> Component:
    """Build the page of a run; callbacks fill its parts."""
    known = unquote(run_id or "")
    return html.Div(
        [
            dcc.Store(id=ids.RUN_ID, data=known),
            dcc.Store(id=ids.RUN_FACTS),
            dcc.Store(id=ids.SHOWN),
            dcc.Store(id=ids.EXTENSION),
            dcc.Store(id=ids.REDRAW),
            dcc.Store(id=ids.PANEL_NAMES, data=list(ids.PANELS)),
            dcc.Store(id=ids.HEATMAP_SHOWN),
            dcc.Store(id=ids.TIMELINE_LIMIT, data=_TIMELINE_ENTRIES),
            html.Div(id=ids.RUN_PROBLEM),
            html.Div(
                [
                    html.Header(
                        [
                            html.Div(dmc.Skeleton(height=48), id=ids.RUN_HEADER),
                            html.Div(id=ids.RUN_PLACE, className="run-place"),
                        ],
                        className="run-header",
                    ),
                    html.Div(
                        [
                            html.Section(_decisions(), className="run-decisions"),
                            html.Section(_charts(), className="run-charts"),
                            html.Section(_history(), className="run-history"),
                        ],
                        className="run-grid",
                    ),
                    *run_dialogs(),
                ],
                id=ids.RUN_BODY,
            ),
        ]
    )


def _decisions() -> list[Component]:
    return [
        html.Div(id=ids.RUN_PROPOSALS),
        html.Div(dmc.Skeleton(height=90), id=ids.RUN_INCIDENT),
        html.Div(id=ids.RUN_COMMANDS),
    ]


def _history() -> list[Component]:
    return [
        html.H3("Timeline"),
        html.Div(dmc.Skeleton(height=160), id=ids.TIMELINE),
        dmc.Button(
            "Show earlier",
            id=ids.TIMELINE_MORE,
            variant="default",
            size="xs",
            display="none",
        ),
        html.Div(id=ids.RUN_PAST),
        html.Div(id=ids.RUN_RULES),
    ]


def _charts() -> list[Component]:
    return [
        html.Div(id=ids.CHARTS_PROBLEM),
        html.Div([_chart(*chart) for chart in _CHARTS], className="charts-grid"),
        _picked(),
        _heatmap(),
    ]


def _chart(chart_id: str, title: str, unit: str, controls: Component | None = None) -> Component:
    head: list[Any] = [
        html.H3(title),
        dmc.Text(unit, size="xs", c="dimmed", span=True, className="chart-unit"),
    ]
    if chart_id == ids.CHART_LOSS:
        head.append(dmc.Switch(id=ids.LOG_LOSS, label="log", size="xs", className="chart-control"))
    if controls is not None:
        head.append(controls)
    return html.Div(
        [
            html.Div(head, className="chart-head"),
            dcc.Graph(
                id=chart_id,
                figure=empty_figure(),
                config=_config(),
                className="chart",
                style={"display": "none"} if chart_id == ids.CHART_PICKED else {"height": HEIGHT},
            ),
        ],
        className="chart-card",
    )


def _config() -> Any:  # noqa: ANN401  Dash's own type for it is a closed dictionary
    return CONFIG


def _picked() -> Component:
    pick = dmc.MultiSelect(
        id=ids.PICKED,
        data=[],
        value=[],
        searchable=True,
        clearable=True,
        maxValues=8,
        limit=100,
        placeholder="Add series (up to 8)",
        nothingFoundMessage="No matching series",
        className="picker",
        **{"aria-label": "Series to plot"},
    )
    return _chart(ids.CHART_PICKED, "More series", "on one axis", pick)


def _heatmap() -> Component:
    controls = dmc.Group(
        [
            dmc.Select(
                id=ids.HEATMAP_METRIC,
                data=[],
                allowDeselect=False,
                size="xs",
                className="heatmap-metric",
                **{"aria-label": "Heatmap metric"},
            ),
            dmc.Select(
                id=ids.HEATMAP_KIND,
                data=[],
                placeholder="All kinds",
                clearable=True,
                size="xs",
                className="heatmap-kind",
                **{"aria-label": "Module kind"},
            ),
            dmc.SegmentedControl(
                id=ids.HEATMAP_COLOURING,
                data=[
                    {"value": "default", "label": "auto"},
                    {"value": "relative", "label": "relative"},
                    {"value": "absolute", "label": "absolute"},
                ],
                value="default",
                size="xs",
            ),
        ],
        gap="xs",
    )
    return html.Div(
        [
            html.Div(
                [html.H3("Layer heatmap"), controls],
                className="chart-head",
            ),
            html.Div(id=ids.HEATMAP_PROBLEM),
            dcc.Graph(
                id=ids.HEATMAP,
                figure=empty_figure(),
                config=_config(),
                className="chart",
                style={"height": HEIGHT},
            ),
        ],
        className="chart-card",
    )


def _rewind_note(reason: str) -> Component:
    return dmc.Text(
        f"This job cannot be rolled back: {reason}. Its rate can be cut, and it can be paused.",
        size="sm",
        c="dimmed",
    )


_ENDED = (RunState.FINISHED, RunState.FAILED)


def run_header(run: Run) -> Component:
    """Build the header with the buttons; a run that has ended accepts no commands."""
    ended = run.state in _ENDED
    facts: list[str | Component] = [f"id {run.id[:8]}"]
    if run.key:
        facts.insert(0, run.key)
    if run.world_size > 1:
        facts.append(f"{count(run.world_size)} ranks")
    if run.global_batch is not None:
        facts.append(f"{count(run.global_batch)} samples per step")
    if run.git_revision:
        facts.append(f"revision {run.git_revision[:12]}")
    return html.Div(
        [
            html.Div(
                [
                    html.H2(run.name, className="run-name"),
                    run_state_badge(run.state),
                    mode_badge(run.mode),
                ],
                className="run-title",
            ),
            facts_line(facts),
            *([_rewind_note(run.rewind_reason)] if run.rewind is RewindKind.NONE else []),
            dmc.Group(
                [
                    dmc.Button("Send command", id=ids.OPEN_SEND, size="xs", disabled=ended),
                    dmc.Button("Mode", id=ids.OPEN_MODE, size="xs", variant="default"),
                    dmc.Button("Silence rule", id=ids.OPEN_SILENCE, size="xs", variant="default"),
                ],
                gap="xs",
                mt=6,
            ),
        ]
    )


PHASES: Final = {
    Phase.FALLING: "falling",
    Phase.HONEYMOON: "nearly level",
    Phase.DIVERGING: "diverging",
}


def run_place(run: Run, now: datetime) -> Component:
    """Show step, attempt and last seen; updated with every step, unlike the header."""
    return html.Span(
        [
            "step ",
            html.Strong(count(run.step), className="number", id=ids.RUN_STEP),
            f", attempt {count(run.attempt)}, ",
            "" if run.phase is Phase.LEARNING else f"loss {PHASES[run.phase]}, ",
            "last seen ",
            since(run.last_seen_at, now),
        ]
    )
