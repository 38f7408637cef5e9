"""What holds for all runs: the switch, silences, and the log of everything that was done."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from urllib.parse import quote

import dash_mantine_components as dmc
from dash import dcc, html
from dash.development.base_component import Component

from dashboard import ids
from dashboard.actions import control_dialogs
from dashboard.components.elements import BadgeStyle, Shape, badge, since, until
from dashboard.formatting import count
from dashboard.text import actor_name, capital, phrase
from stabilizer.protocol.queries import AuditEntry, ControlState, Silence


def control(**_: object) -> Component:
    """Build the page; its parts come with the first answers."""
    return html.Div(
        [
            dmc.Title("Control", order=2),
            dcc.Store(id=ids.CONTROL_FACTS),
            html.Div(id=ids.CONTROL_PROBLEM),
            html.Div(
                [
                    html.Section(
                        [html.Div(dmc.Skeleton(height=90), id=ids.CONTROL_STATE)],
                        className="card",
                    ),
                    html.Section(
                        [html.H3("Active silences"), html.Div(id=ids.CONTROL_SILENCES)],
                        className="card",
                    ),
                ],
                className="control-grid",
            ),
            html.Section(
                [html.H3("Audit log"), html.Div(id=ids.CONTROL_AUDIT)],
                className="card",
            ),
            *control_dialogs(),
        ],
        className="control-page",
    )


_SHORT: Final = 8


def armed_badge(state: ControlState) -> Component | None:
    """Say in the head of every page that nothing will be done; None while the policy may act."""
    if not state.disarmed:
        return None
    title = f"{actor_name(state.actor)}: {state.reason}"
    return dcc.Link(
        badge(BadgeStyle("red", Shape.SQUARE), "disarmed", title=title),
        href="/control",
        className="way",
    )


def switch_card(state: ControlState, now: datetime) -> Component:
    """Say whether the policy may act at all, since when and why, and offer the other."""
    if state.disarmed:
        title = "Disarmed: the policy acts on no run"
        text = "Rules and incidents stay active. You can still send commands."
        button = dmc.Button("Arm", id=ids.OPEN_ARMING, color="teal")
    else:
        title = "Armed: the policy acts within each run's mode"
        text = "Disarming cancels commands of the policy that no job has received yet."
        button = dmc.Button("Disarm all", id=ids.OPEN_ARMING, color="red")
    children: list[Component] = [html.H3(title), dmc.Text(text, size="sm")]
    if state.changed_at is not None:
        said = [f"{actor_name(state.actor)}, ", since(state.changed_at, now), f": {state.reason}"]
        children.append(dmc.Text(said, size="sm", c="dimmed", className="under"))
    return dmc.Stack([*children, html.Div(button)], gap="xs")


def silence_list(silences: Sequence[Silence], now: datetime) -> Component:
    """List the mutes in force, each with its end and a way to end it now."""
    if not silences:
        return dmc.Text("None. Silence a rule on its run's page.", size="sm", c="dimmed")
    return html.Ul([_silence(one, now) for one in silences], className="plain-list")


def _silence(silence: Silence, now: datetime) -> Component:
    rule = "all rules" if silence.rule == "*" else silence.rule
    where: Component | str = "on all runs"
    if silence.run_id is not None:
        where = _run_link(silence.run_id)
    if silence.until is not None:
        end: list[str | Component] = ["ends in ", until(silence.until, now)]
    else:
        end = [f"until step {count(silence.until_step or 0)}"]
    return html.Li(
        [
            html.Div([html.Strong(rule), " ", where, ", ", *end]),
            dmc.Text(
                [
                    f"{actor_name(silence.actor)}, ",
                    since(silence.created_at, now),
                    f": {silence.reason}",
                ],
                size="xs",
                c="dimmed",
                className="under",
            ),
            dmc.Button(
                "End silence",
                id={"type": ids.END_SILENCE, "id": silence.id},
                size="compact-xs",
                variant="default",
            ),
        ]
    )


def audit_list(entries: Sequence[AuditEntry], now: datetime, limit: int) -> Component:
    """List what was done, newest first."""
    if not entries:
        return dmc.Text("No entries yet.", size="sm", c="dimmed")
    shown = list(reversed(entries))[:limit]
    return html.Ol([_entry(entry, now) for entry in shown], className="plain-list audit-list")


def _entry(entry: AuditEntry, now: datetime) -> Component:
    what = capital(phrase(entry.action))
    line: list[Component | str] = [html.Strong(what)]
    change = _change(entry)
    if change:
        line.append(f" {change}")
    if entry.run_id is not None:
        line += [" ", _run_link(entry.run_id)]
    why = phrase(entry.reason)
    said = f"{why}: {entry.message}" if entry.message else why
    return html.Li(
        [
            html.Div(line),
            dmc.Text(
                [
                    since(entry.at, now),
                    f", {actor_name(entry.actor)}: {said}",
                ],
                size="xs",
                c="dimmed",
                className="under",
            ),
        ]
    )


def _change(entry: AuditEntry) -> str:
    """Say from what to what, where one word says it."""
    before, after = entry.before or {}, entry.after or {}
    for name in ("state", "mode"):
        if name in after:
            was = f"{before[name]} to " if name in before else ""
            return f"({was}{after[name]})"
    return ""


def _run_link(run_id: str) -> Component:
    return dcc.Link(f"run {run_id[:_SHORT]}", href=f"/runs/{quote(run_id, safe='')}")
