"""The control page: global switch, silences and audit log."""

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
from dashboard.formatting import ARROW, count
from dashboard.text import actor_name, capital, phrase, with_message
from stabilizer.protocol.queries import AuditEntry, ControlState, Silence


def control(**_: object) -> Component:
    """Build the page; callbacks fill its parts."""
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
    """Build the badge in the header of every page; None while armed."""
    if not state.disarmed:
        return None
    title = f"{actor_name(state.actor)}: {state.reason}"
    return dcc.Link(
        badge(BadgeStyle("red", Shape.SQUARE), "disarmed", title=title),
        href="/control",
        className="nav-link",
    )


def switch_card(state: ControlState, now: datetime) -> Component:
    """Show the state of the switch, since when and why, with a button to change it."""
    if state.disarmed:
        title = "Disarmed: the policy acts on no run"
        text = "Rules and incidents stay active. You can still send commands."
        button = dmc.Button("Arm", id=ids.OPEN_ARMING, color="teal.9")
    else:
        title = "Armed: the policy acts within each run's mode"
        text = "Disarming cancels commands of the policy that no job has received yet."
        button = dmc.Button("Disarm all", id=ids.OPEN_ARMING, color="red.8")
    children: list[Component] = [html.H3(title), dmc.Text(text, size="sm")]
    if state.changed_at is not None:
        details = [
            f"{actor_name(state.actor)}, ",
            since(state.changed_at, now),
            f": {state.reason}",
        ]
        children.append(dmc.Text(details, size="sm", c="dimmed", className="under"))
    return dmc.Stack([*children, html.Div(button)], gap="xs")


def silence_list(silences: Sequence[Silence], now: datetime) -> Component:
    """List the active silences, each with its end and a button to end it."""
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
    """List audit entries, newest first."""
    if not entries:
        return dmc.Text("No entries yet.", size="sm", c="dimmed")
    shown = list(reversed(entries))[:limit]
    return html.Ol([_entry(entry, now) for entry in shown], className="plain-list audit-list")


def _entry(entry: AuditEntry, now: datetime) -> Component:
    line: list[Component | str] = [html.Strong(capital(phrase(entry.action)))]
    change = _change(entry)
    if change:
        line.append(f" {change}")
    if entry.run_id is not None:
        line += [" ", _run_link(entry.run_id)]
    text = with_message(phrase(entry.reason), entry.message)
    return html.Li(
        [
            html.Div(line),
            dmc.Text(
                [
                    since(entry.at, now),
                    f", {actor_name(entry.actor)}: {text}",
                ],
                size="xs",
                c="dimmed",
                className="under",
            ),
        ]
    )


def _change(entry: AuditEntry) -> str:
    """Return the change of state or mode, or the kind of a decision, in parentheses."""
    before, after = entry.before or {}, entry.after or {}
    for name in ("state", "mode", "kind"):
        old, new = before.get(name), after.get(name)
        if new is not None and new != old:
            return f"({new})" if old is None else f"({old} {ARROW} {new})"
    return ""


def _run_link(run_id: str) -> Component:
    return dcc.Link(f"run {run_id[:_SHORT]}", href=f"/runs/{quote(run_id, safe='')}")
