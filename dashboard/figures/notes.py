"""What a person reads who points at a chart: decisions in plain words, foreign text made harmless.

Notes are plain text, lines apart by newlines, the first one their heading. `assets/charts.js` shows
them as text, never as HTML. What plotly itself writes (legends, tick labels) goes through `escape`.
"""

from __future__ import annotations

import unicodedata
from typing import Final

from dashboard.words.phrases import actor_name, capital, command_sentence, phrase, reason_phrase
from stabilizer.protocol.commands import Command, CommandState
from stabilizer.protocol.decisions import Incident
from stabilizer.protocol.views import MarkerInfo

MAX_TEXT: Final = 240


def escape(text: str, limit: int = MAX_TEXT) -> str:
    """Make text safe for plotly, which reads tags and entities in any text; cut like `plain`."""
    return plain(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def plain(text: str, limit: int = MAX_TEXT) -> str:
    """Cut text from jobs and people to a sane length, on one line.

    Control and format characters become spaces, so that nothing can turn the direction of a note
    or make lines of its own.
    """
    visible = (" " if unicodedata.category(sign)[0] in "CZ" else sign for sign in text)
    line = " ".join("".join(visible).split())
    return line if len(line) <= limit else line[: limit - 3].rstrip() + "..."


def describe_incident(incident: Incident) -> str:
    """Tell an incident: number, severity, state, steps, rules, decision and its reason."""
    if incident.resolved_step is None:
        steps = f"since step {incident.first_step:,}"
    else:
        steps = f"steps {incident.first_step:,} to {incident.resolved_step:,}"
    lines = [
        f"Incident {incident.number}: {incident.severity.value}, {incident.state.value}",
        steps,
        plain(", ".join(rule.replace("_", " ") for rule in incident.rules)),
        plain(f"{phrase(incident.decision)}: {phrase(incident.reason)}"),
        plain(incident.message),
    ]
    return "\n".join(line for line in lines if line)


def describe_command(command: Command) -> str:
    """Tell a command: what, in which state and at which step, by whom and why."""
    lines = [
        capital(command_sentence(command.parameters)),
        _state(command),
        plain(f"by {actor_name(command.actor)}: {reason_phrase(command.reason)}"),
        plain(command.message),
    ]
    result = command.result
    if result is not None and result.reason is not None:
        lines.append(plain(f"because {phrase(result.reason)}. {result.message}"))
    return "\n".join(line for line in lines if line)


def _state(command: Command) -> str:
    if command.result is not None and command.result.applied_step is not None:
        return f"{command.state.value} at step {command.result.applied_step:,}"
    if command.issued_step is None:
        return command.state.value
    if command.state is CommandState.PROPOSED:
        return f"proposed at step {command.issued_step:,}, waits for a person"
    return f"{command.state.value}, given at step {command.issued_step:,}"


def describe_marker(marker: MarkerInfo) -> str:
    """Tell an event of the job, with the job's own words."""
    name = marker.kind.value.replace("_", " ").replace("lr", "learning rate").capitalize()
    head = f"{name} at step {marker.step:,}, attempt {marker.attempt}"
    return "\n".join(line for line in (head, plain(marker.text)) if line)
