"""The head of a run's page: which run, how it is, and what can be done with it."""

from __future__ import annotations

from datetime import datetime

import dash_mantine_components as dmc
from dash import html
from dash.development.base_component import Component

from dashboard import ids
from dashboard.components.badges import mode_badge, run_state_badge
from dashboard.components.facts import facts_line
from dashboard.components.times import since
from dashboard.words.amounts import count
from stabilizer.protocol.runs import Run, RunState

_ENDED = (RunState.FINISHED, RunState.FAILED)


def run_header(run: Run) -> Component:
    """Name the run, and offer what can be done; what has ended takes no commands."""
    ended = run.state in _ENDED
    facts: list[str | Component] = [f"id {run.id[:8]}"]
    if run.key:
        facts.insert(0, run.key)
    if run.world_size > 1:
        facts.append(f"{count(run.world_size)} ranks")
    if run.global_batch is not None:
        facts.append(f"{count(run.global_batch)} samples a step")
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
            dmc.Group(
                [
                    dmc.Button("Send a command", id=ids.OPEN_ORDER, size="xs", disabled=ended),
                    dmc.Button("Mode", id=ids.OPEN_MODE, size="xs", variant="default"),
                    dmc.Button("Silence a rule", id=ids.OPEN_SILENCE, size="xs", variant="default"),
                ],
                gap="xs",
                mt=6,
            ),
        ]
    )


def run_place(run: Run, now: datetime) -> Component:
    """Say where the run stands; renewed with every step, unlike the rest of the head."""
    return html.Span(
        [
            "step ",
            html.Strong(count(run.step), className="number", id=ids.RUN_STEP),
            f", attempt {count(run.attempt)}, heard ",
            since(run.last_seen_at, now),
        ]
    )
