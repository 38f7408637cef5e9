"""What happened to a run, and what waits for a person, as the parts of its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import dash_mantine_components as dmc
from dash import html, no_update
from dash.development.base_component import Component

from dashboard import ids
from dashboard.components.command import CommandActions, command_card, preview_panel
from dashboard.components.incident import incident_card, past_incidents
from dashboard.components.run_header import run_header
from dashboard.components.timeline import build_timeline, timeline
from dashboard.handlers.story import Story, rule_docs
from dashboard.words.amounts import count
from stabilizer.protocol.commands import Command

ACTIONS: Final = CommandActions(
    approve=ids.APPROVE, reject=ids.REJECT, cancel=ids.CANCEL, preview=ids.PREVIEW
)

_PAST_SHOWN: Final = 20
"""Incidents that are over; a run may have had hundreds."""

PARTS: Final = (
    (ids.RUN_HEADER, "children"),
    (ids.RUN_PROPOSALS, "children"),
    (ids.RUN_INCIDENT, "children"),
    (ids.RUN_COMMANDS, "children"),
    (ids.TIMELINE, "children"),
    (ids.TIMELINE_MORE, "display"),
    (ids.RUN_PAST, "children"),
    (ids.RUN_RULES, "children"),
)
"""Component and property of each part, in the order of `RunView.parts`."""
NAMES: Final = tuple(".".join(part) for part in PARTS)
"""Of the parts, for their fingerprints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """What a run's page tells of what happened."""

    parts: Sequence[Any]
    """As many as `PARTS`."""
    stable: Sequence[Any]
    """The same without what changes with every step and is renewed alone: the previews."""
    previews: Mapping[str, Component]
    """What proposed commands would do now, by their ids."""
    facts: Mapping[str, Any]


def renewed_previews(
    view: RunView, present: Sequence[Mapping[str, str]], changed: Sequence[Any]
) -> list[Any]:
    """Return what the previews on the page show now, in its order.

    Args:
        view: The page as it should be.
        present: Ids of the previews that it has.
        changed: Its parts, as `only_changed` gives them: cards that are new bring their previews.
    """
    if changed[PARTS.index((ids.RUN_PROPOSALS, "children"))] is not no_update:
        return [no_update] * len(present)
    return [view.previews.get(one["id"]) for one in present]


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
    parts = (
        run_header(story.run),
        [_card(story, one, now) for one in story.proposed],
        _incident(story, docs),
        [_card(story, one, now) for one in story.shown],
        timeline(entries, now=now, limit=limit),
        "block" if len(entries) > limit else "none",
        _past(story),
        _broken_rules(story),
    )
    bare = [_card(replace(story, previews={}), one, now) for one in story.proposed]
    return RunView(
        parts=parts,
        stable=(parts[0], bare, *parts[2:]),
        previews={name: preview_panel(preview) for name, preview in story.previews.items()},
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
    if not past:
        return None
    past.sort(key=lambda one: one.number, reverse=True)
    earlier = len(past) - _PAST_SHOWN
    more = [html.P(f"{count(earlier)} earlier stand in the log", className="empty")]
    return html.Div([past_incidents(past[:_PAST_SHOWN]), *(more if earlier > 0 else [])])


def _broken_rules(story: Story) -> Component | None:
    broken = [rule for rule in story.rules.health if not rule.ok]
    if not broken:
        return None
    lines = [html.Li(f"{rule.name}: {rule.last_error}") for rule in broken]
    return dmc.Alert(html.Ul(lines), title="Rules that do not work", color="red", variant="light")
