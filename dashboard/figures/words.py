"""What a person reads who points at a chart: decisions in plain words, foreign text made harmless.

Notes are plain text, lines apart by newlines, the first one their heading. `assets/charts.js` shows
them as text, never as HTML. What plotly itself writes (legends, tick labels) goes through `escape`.
"""

from __future__ import annotations

import math
import unicodedata
from typing import Final

from stabilizer.protocol.commands import (
    Command,
    CommandKind,
    CommandState,
    ReduceLrParameters,
    RejectReason,
    RollbackParameters,
)
from stabilizer.protocol.decisions import DecisionKind, DecisionReason, Incident
from stabilizer.protocol.views import MarkerInfo

MAX_TEXT: Final = 240

KIND_WORDS: Final = {
    CommandKind.ROLLBACK: "roll back",
    CommandKind.REDUCE_LR: "reduce the learning rate",
    CommandKind.PAUSE: "pause",
    CommandKind.RESUME: "resume",
    CommandKind.STOP: "stop",
    CommandKind.CHECKPOINT_NOW: "write a checkpoint",
}

_DECISION_WORDS: Final = {
    DecisionKind.WAIT: "waits",
    DecisionKind.ACT: "acts",
    DecisionKind.PROPOSE: "proposes a command",
    DecisionKind.HOLD: "would act, but is held back",
    DecisionKind.RESOLVE: "closed",
    DecisionKind.ESCALATE: "calls a person",
}

_REASON_WORDS: Final[dict[str, str]] = {
    DecisionReason.MAY_RECOVER: "it may recover by itself",
    DecisionReason.SECOND_SIGNAL_MISSING: "a second signal is missing",
    DecisionReason.COMMAND_IN_FLIGHT: "a command is under way",
    DecisionReason.WATCHING: "the effect of the last command is being watched",
    DecisionReason.DIVERGENCE: "the run diverges",
    DecisionReason.PRECURSOR_CONFIRMED: "a precursor was confirmed by a second signal",
    DecisionReason.RELAPSE: "it came back after an intervention",
    DecisionReason.DEADLINE_PASSED: "it did not recover in time",
    DecisionReason.COMMAND_FAILED: "the last command failed",
    DecisionReason.MANUAL: "a person asked for it",
    DecisionReason.MODE_OBSERVE: "the mode is observe",
    DecisionReason.MODE_PROPOSE: "the mode is propose: a person decides",
    DecisionReason.BUDGET_SPENT: "the budget of interventions is spent",
    DecisionReason.COOLDOWN: "the last intervention is too recent",
    DecisionReason.DISARMED: "everything is disarmed",
    DecisionReason.SILENCED: "a person silenced the rule",
    DecisionReason.NO_HEALTHY_SNAPSHOT: "there is no healthy snapshot to go back to",
    DecisionReason.LADDER_EXHAUSTED: "every rung of the ladder was tried",
    DecisionReason.RECOVERED_BY_ITSELF: "it recovered by itself",
    DecisionReason.INTERVENTION_HELPED: "the intervention helped",
    DecisionReason.CLOSED_BY_PERSON: "a person closed it",
    DecisionReason.RUN_ENDED: "the run ended",
    RejectReason.PAST_ATTEMPT: "it was meant for an attempt that is past",
    RejectReason.UNKNOWN_SNAPSHOT: "the job does not hold the snapshot",
    RejectReason.SNAPSHOT_NOT_FINITE: "the snapshot is not finite",
    RejectReason.EXPIRED: "nobody took it up in time",
    RejectReason.UNSUPPORTED: "the job cannot do this",
    RejectReason.NOT_PAUSED: "the job was not paused",
    RejectReason.RUN_ENDING: "the run was ending",
    RejectReason.RESTORE_FAILED: "the state could not be restored",
    RejectReason.READ_BACK_MISMATCH: "what was read back is not what was asked for",
    RejectReason.STALE_FENCE: "it came from a collector that no longer decides",
    RejectReason.REFUSED_BY_PERSON: "a person refused it",
    RejectReason.SUPERSEDED: "another command took its place",
}


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


def number(value: float) -> str:
    """Write a value for people: four significant digits; NaN and Inf by their names."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Inf" if value > 0 else "-Inf"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:,.4g}"


def reason_words(reason: str) -> str:
    """Say a `DecisionReason` or `RejectReason` in plain words; an unknown one as it stands."""
    return _REASON_WORDS.get(reason) or reason.replace("_", " ")


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
        plain(f"{_DECISION_WORDS[incident.decision]}: {reason_words(incident.reason)}"),
        plain(incident.message),
    ]
    return "\n".join(line for line in lines if line)


def describe_command(command: Command) -> str:
    """Tell a command: what, in which state and at which step, by whom and why."""
    lines = [
        _what(command).capitalize(),
        _state(command),
        plain(f"by {command.actor.removeprefix('person:')}: {reason_words(command.reason)}"),
        plain(command.message),
    ]
    result = command.result
    if result is not None and result.reason is not None:
        lines.append(plain(f"because {reason_words(result.reason)}. {result.message}"))
    return "\n".join(line for line in lines if line)


def _what(command: Command) -> str:
    asked = command.parameters
    if isinstance(asked, ReduceLrParameters):
        return _cut(asked)
    if not isinstance(asked, RollbackParameters):
        return KIND_WORDS[asked.kind]
    text = f"roll back to step {asked.target.step:,}"
    if asked.skip_steps:
        text += f", skip {asked.skip_steps:,} steps of data"
    return text if asked.reduce_lr is None else f"{text}, {_cut(asked.reduce_lr)}"


def _cut(asked: ReduceLrParameters) -> str:
    text = f"learning rate x {asked.factor:g}"
    return text if asked.hold_steps is None else f"{text} for {asked.hold_steps:,} steps"


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
