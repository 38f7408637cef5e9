"""What happened to a run, and what waits for a person, as the parts of its page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import dash_mantine_components as dmc
from dash import html
from dash.development.base_component import Component

from dashboard import ids
from dashboard.components.command import CommandActions, command_card
from dashboard.components.incident import incident_card, past_incidents
from dashboard.components.run_header import run_header
from dashboard.components.timeline import build_timeline, timeline
from dashboard.handlers.story import Story, rule_docs
from stabilizer.protocol.commands import Command

ACTIONS: Final = CommandActions(approve=ids.APPROVE, reject=ids.REJECT, cancel=ids.CANCEL)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """The parts of a run's page that tell what happened."""

    header: Component
    proposals: list[Component]
    incident: Component
    commands: list[Component]
    timeline: Component
    has_earlier: bool
    past: Component | None
    rules: Component | None
    facts: Mapping[str, Any]


def view_run(story: Story, now: datetime, limit: int) -> RunView:
    """Tell the story of a run.

    Args:
        story: What the collector knows.
        now: For "3 min ago".
        limit: Entries of the log to show.
    """
    docs = rule_docs(story.rules.text)
    entries = build_timeline(
        audit=story.audit,
        incidents=story.incidents,
        alerts=story.alerts,
        commands=story.commands,
        markers=story.markers,
        attempts=story.run.attempts,
        global_batch=story.run.global_batch,
    )
    return RunView(
        header=run_header(story.run),
        proposals=[_card(story, one, now) for one in story.proposed],
        incident=_incident(story, docs),
        commands=[_card(story, one, now) for one in story.shown],
        timeline=timeline(entries, now=now, limit=limit),
        has_earlier=len(entries) > limit,
        past=_past(story),
        rules=_broken_rules(story),
        facts={
            "mode": story.run.mode.value,
            "state": story.run.state.value,
            "attempt": story.run.attempt,
            "step": story.run.step,
            "rules": [rule.name for rule in story.rules.health],
        },
    )


def _card(story: Story, command: Command, now: datetime) -> Component:
    return command_card(
        command,
        now=now,
        preview=story.previews.get(command.id),
        history=story.audit,
        known=story.baselines.get(command.id),
        actions=ACTIONS,
    )


def _incident(story: Story, docs: Mapping[str, str]) -> Component:
    incident = story.open_incident
    if incident is None:
        return html.Div(
            dmc.Text("No open incident.", size="sm", c="dimmed"), className="card quiet"
        )
    return incident_card(incident, docs=docs, step=story.run.step)


def _past(story: Story) -> Component | None:
    past = [one for one in story.incidents if one.resolved_step is not None]
    return past_incidents(past) if past else None


def _broken_rules(story: Story) -> Component | None:
    broken = [rule for rule in story.rules.health if not rule.ok]
    if not broken:
        return None
    lines = [html.Li(f"{rule.name}: {rule.last_error}") for rule in broken]
    return dmc.Alert(html.Ul(lines), title="Rules that do not work", color="red", variant="light")
