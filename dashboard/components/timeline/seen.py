"""Alerts and decisions as lines of the log book."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Final

from dashboard.components.badges import look
from dashboard.components.timeline.entry import Entry, EntryKind
from dashboard.components.timeline.log import AuditIndex
from dashboard.words.amounts import count, number
from dashboard.words.phrases import capital, command_sentence, command_title, phrase
from stabilizer.protocol.commands import Command
from stabilizer.protocol.decisions import (
    Alert,
    AlertState,
    Decision,
    DecisionKind,
    Incident,
    IncidentState,
)
from stabilizer.protocol.queries import AuditAction, AuditEntry

_MAX_SERIES: Final = 20
"""Series that an alert's details name one by one."""
LOST_RULE: Final = "no_sign_of_life"
"""The alert of a silent job; its change of state says the same."""
_TONES: Final[Mapping[DecisionKind, str]] = {
    DecisionKind.WAIT: "gray",
    DecisionKind.ACT: "violet",
    DecisionKind.PROPOSE: "orange",
    DecisionKind.HOLD: "yellow",
    DecisionKind.RESOLVE: "teal",
    DecisionKind.ESCALATE: "red",
}


def alert_entries(alerts: Sequence[Alert]) -> Iterator[Entry]:
    """Tell what rules have seen; series that fire together by one rule are one line."""
    fired = [
        alert
        for alert in alerts
        if alert.firing_step is not None
        and alert.state is not AlertState.PENDING
        and alert.rule != LOST_RULE
    ]
    for _, group in groupby(sorted(fired, key=_rule_and_place), key=_rule_and_place):
        yield _seen(list(group))


def _rule_and_place(alert: Alert) -> tuple[str, int, int]:
    return alert.rule, alert.attempt, alert.firing_step or 0


def _seen(alerts: Sequence[Alert]) -> Entry:
    worst = min(alerts, key=_worst_first)
    place = _rule_and_place(worst)
    where = worst.series or "the run"
    text = f"on {where}" if len(alerts) == 1 else f"on {count(len(alerts))} series"
    if worst.score is not None and worst.threshold is not None:
        text += f", score {number(worst.score)} past {number(worst.threshold)}"
    elif worst.value is not None:
        text += f", value {number(worst.value)}"
    digest = hashlib.blake2b("\x1f".join(map(str, place)).encode(), digest_size=8)
    return Entry(
        key=f"alert-{digest.hexdigest()}",
        kind=EntryKind.SEEN,
        title=f"Rule {worst.rule} fires: {worst.severity}",
        text=text,
        attempt=worst.attempt,
        step=worst.firing_step,
        tone=look(worst.severity).tone,
        incident_id=worst.incident_id,
        details=tuple(_alert_details(alerts)),
        words=worst.message,
    )


def _worst_first(alert: Alert) -> tuple[float, str]:
    """Order by score; one that is not a number is worse than any number."""
    score = -math.inf if alert.score is None else alert.score
    return -math.inf if math.isnan(score) else -score, alert.series


def _alert_details(alerts: Sequence[Alert]) -> Iterator[tuple[str, str]]:
    for alert in sorted(alerts, key=_worst_first)[:_MAX_SERIES]:
        text = f"value {number(alert.value)}"
        if alert.score is not None:
            text += f", score {number(alert.score)}"
        if alert.resolved_step is not None:
            text += f", quiet again at step {count(alert.resolved_step)}"
        yield alert.series or "the run", text
    if len(alerts) > _MAX_SERIES:
        yield "and", f"{count(len(alerts) - _MAX_SERIES)} more"


def decision_entries(
    incidents: Sequence[Incident],
    commands: Mapping[str, Command],
    log: AuditIndex,
    global_batch: int | None,
) -> Iterator[Entry]:
    """Tell each decision once, at the time that the audit log has for it."""
    for incident in incidents:
        for position, decision in enumerate(incident.decisions):
            audited = log.take_decision(incident.id, decision)
            command = commands.get(decision.command_id or "")
            yield Entry(
                key=f"decision-{incident.id}-{position}",
                kind=EntryKind.DECIDED,
                title=_decision_title(incident, position, command),
                text=_decision_text(decision, command, global_batch),
                actor="policy",
                at=_decided_at(incident, position, audited),
                attempt=decision.attempt,
                step=decision.step,
                tone=_TONES[decision.kind],
                command_id=decision.command_id,
                incident_id=incident.id,
                details=tuple(_decision_details(incident, decision)),
            )


def _decided_at(incident: Incident, position: int, audited: AuditEntry | None) -> datetime | None:
    if audited is not None:
        return audited.at
    return incident.opened_at if position == 0 else None


def _decision_title(incident: Incident, position: int, command: Command | None) -> str:
    decision = incident.decisions[position]
    if decision.kind is DecisionKind.RESOLVE:
        return f"Incident {incident.number} is closed"
    opens = " opens" if position == 0 else ""
    title = f"Incident {incident.number}{opens}: {phrase(decision.kind)}"
    if command is None:
        return title
    what = command_title(command.parameters)
    return f"{title} to {what}" if decision.kind is DecisionKind.PROPOSE else f"{title} ({what})"


def _decision_text(decision: Decision, command: Command | None, global_batch: int | None) -> str:
    because = phrase(decision.reason)
    if decision.deadline_step is not None:
        because += f", until step {count(decision.deadline_step)}"
    if command is not None:
        sentence = command_sentence(command.parameters, global_batch=global_batch)
        return f"{capital(because)}: {sentence}"
    if decision.message and decision.message != phrase(decision.reason):
        return f"{capital(because)}: {decision.message}"
    return capital(because)


def _decision_details(incident: Incident, decision: Decision) -> Iterator[tuple[str, str]]:
    if decision.message and decision.command_id is not None:
        yield "in the policy's words", decision.message
    if decision.rung is not None:
        yield "rung of the ladder", str(decision.rung + 1)
    if decision.kind is DecisionKind.RESOLVE and incident.helped is not None:
        yield "helped", "yes" if incident.helped else "no"


def unlisted_decisions(log: AuditIndex) -> Iterator[Entry]:
    """Tell the decisions that only the audit log knows, because their incident was not given."""
    for entry in log.take(AuditAction.DECISION_MADE):
        after = entry.after or {}
        kind, command_id = str(after.get("kind")), after.get("command_id")
        step, attempt = after.get("step"), after.get("attempt")
        is_known = kind in set(DecisionKind)
        yield Entry(
            key=f"audit-{entry.id}",
            kind=EntryKind.DECIDED,
            title=f"The policy {phrase(DecisionKind(kind)) if is_known else 'decided'}",
            text=capital(entry.message or phrase(entry.reason)),
            actor=entry.actor,
            at=entry.at,
            attempt=attempt if isinstance(attempt, int) else None,
            step=step if isinstance(step, int) else None,
            tone=_TONES[DecisionKind(kind)] if is_known else "gray",
            command_id=None if command_id is None else str(command_id),
            incident_id=entry.subject,
        )


def incident_entries(incidents: Sequence[Incident], log: AuditIndex) -> Iterator[Entry]:
    """Tell what changed about an incident that no decision tells: it grew worse, or was dropped."""
    numbers = {incident.id: incident.number for incident in incidents}
    for entry in log.take(AuditAction.INCIDENT_CHANGED):
        title = _change_title(entry, log)
        if title is None:
            continue
        number_ = numbers.get(entry.subject)
        name = "Incident" if number_ is None else f"Incident {number_}"
        yield Entry(
            key=f"audit-{entry.id}",
            kind=EntryKind.DECIDED,
            title=f"{name} {title}",
            text=capital(entry.message or phrase(entry.reason)),
            actor=entry.actor,
            at=entry.at,
            incident_id=entry.subject,
            tone="orange",
        )


def _change_title(entry: AuditEntry, log: AuditIndex) -> str | None:
    before, after = entry.before, entry.after or {}
    if before is None:
        return None
    severity = after.get("severity")
    if severity is not None and before.get("severity") != severity:
        return f"is now a {severity}"
    is_resolved = after.get("state") == IncidentState.RESOLVED.value
    return "is closed" if is_resolved and entry.at not in log.changed_at(entry.subject) else None
