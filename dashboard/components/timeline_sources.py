"""Timeline entries from each source: alerts, incidents, commands, attempts, markers, audit log."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import groupby
from typing import Final

from dashboard.components.command_progress import ReadBackContext, ReadBackVerdict, verify
from dashboard.components.elements import badge_style
from dashboard.components.timeline_entries import AuditIndex, EntryKind, TimelineEntry
from dashboard.formatting import ARROW, count, moment, number
from dashboard.text import (
    capital,
    command_sentence,
    command_title,
    is_user,
    phrase,
    reason_phrase,
    with_message,
)
from stabilizer.protocol.batches import MarkerKind
from stabilizer.protocol.commands import Command, CommandKind, CommandState
from stabilizer.protocol.decisions import (
    Alert,
    AlertState,
    Decision,
    DecisionKind,
    Incident,
    IncidentState,
)
from stabilizer.protocol.queries import AuditAction, AuditEntry, AuditReason
from stabilizer.protocol.runs import Attempt, RunState
from stabilizer.protocol.views import MarkerInfo

_MAX_SERIES: Final = 20
"""Series that an alert's details name one by one."""
LOST_RULE: Final = "no_sign_of_life"
"""Alert of a lost run; the change of the run's state says the same."""
_TONES: Final[Mapping[DecisionKind, str]] = {
    DecisionKind.WAIT: "gray",
    DecisionKind.ACT: "violet",
    DecisionKind.PROPOSE: "orange",
    DecisionKind.HOLD: "yellow",
    DecisionKind.RESOLVE: "teal",
    DecisionKind.ESCALATE: "red",
}


def alert_entries(alerts: Sequence[Alert]) -> Iterator[TimelineEntry]:
    """Build the entries of alerts; series that fire together by one rule are one entry."""
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


def _seen(alerts: Sequence[Alert]) -> TimelineEntry:
    worst = min(alerts, key=_worst_first)
    place = _rule_and_place(worst)
    where = worst.series or "the run"
    text = f"on {where}" if len(alerts) == 1 else f"on {count(len(alerts))} series"
    if worst.score is not None and worst.threshold is not None:
        text += f", score {number(worst.score)} above {number(worst.threshold)}"
    elif worst.value is not None:
        text += f", value {number(worst.value)}"
    digest = hashlib.blake2b("\x1f".join(map(str, place)).encode(), digest_size=8)
    return TimelineEntry(
        key=f"alert-{digest.hexdigest()}",
        kind=EntryKind.SEEN,
        title=f"Rule {worst.rule} firing: {worst.severity}",
        text=text,
        attempt=worst.attempt,
        step=worst.firing_step,
        tone=badge_style(worst.severity).tone,
        incident_id=worst.incident_id,
        details=tuple(_alert_details(alerts)),
        job_message=worst.message,
    )


def _worst_first(alert: Alert) -> tuple[float, str]:
    """Sort by score, NaN first."""
    score = -math.inf if alert.score is None else alert.score
    return -math.inf if math.isnan(score) else -score, alert.series


def _alert_details(alerts: Sequence[Alert]) -> Iterator[tuple[str, str]]:
    for alert in sorted(alerts, key=_worst_first)[:_MAX_SERIES]:
        text = f"value {number(alert.value)}"
        if alert.score is not None:
            text += f", score {number(alert.score)}"
        if alert.resolved_step is not None:
            text += f", resolved at step {count(alert.resolved_step)}"
        yield alert.series or "the run", text
    if len(alerts) > _MAX_SERIES:
        yield "and", f"{count(len(alerts) - _MAX_SERIES)} more"


def decision_entries(
    incidents: Sequence[Incident],
    commands: Mapping[str, Command],
    log: AuditIndex,
    global_batch: int | None,
) -> Iterator[TimelineEntry]:
    """Build one entry per decision, with its time from the audit log."""
    for incident in incidents:
        for position, decision in enumerate(incident.decisions):
            audited = log.take_decision(incident.id, decision)
            command = commands.get(decision.command_id or "")
            yield TimelineEntry(
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
        return f"Incident {incident.number} resolved"
    opens = " opened" if position == 0 else ""
    title = f"Incident {incident.number}{opens}: {phrase(decision.kind)}"
    if command is None:
        return title
    return f"{title} ({command_title(command.parameters)})"


def _decision_text(decision: Decision, command: Command | None, global_batch: int | None) -> str:
    message = decision.message
    if command is not None:
        message = command_sentence(command.parameters, global_batch=global_batch)
    text = with_message(phrase(decision.reason), message)
    if decision.deadline_step is not None:
        text += f", until step {count(decision.deadline_step)}"
    return capital(text)


def _decision_details(incident: Incident, decision: Decision) -> Iterator[tuple[str, str]]:
    if decision.message and decision.command_id is not None:
        yield "policy message", decision.message
    if decision.rung is not None:
        yield "ladder step", str(decision.rung + 1)
    if decision.kind is DecisionKind.RESOLVE and incident.helped is not None:
        yield "helped", "yes" if incident.helped else "no"


def unlisted_decisions(log: AuditIndex) -> Iterator[TimelineEntry]:
    """Build the entries of decisions that are only in the audit log."""
    for entry in log.take(AuditAction.DECISION_MADE):
        after = entry.after or {}
        kind, command_id = str(after.get("kind")), after.get("command_id")
        step, attempt = after.get("step"), after.get("attempt")
        is_known = kind in set(DecisionKind)
        yield TimelineEntry(
            key=f"audit-{entry.id}",
            kind=EntryKind.DECIDED,
            title=f"Policy decision: {phrase(DecisionKind(kind)) if is_known else kind}",
            text=capital(entry.message or phrase(entry.reason)),
            actor=entry.actor,
            at=entry.at,
            attempt=attempt if isinstance(attempt, int) else None,
            step=step if isinstance(step, int) else None,
            tone=_TONES[DecisionKind(kind)] if is_known else "gray",
            command_id=None if command_id is None else str(command_id),
            incident_id=entry.subject,
        )


def incident_entries(incidents: Sequence[Incident], log: AuditIndex) -> Iterator[TimelineEntry]:
    """Build the entries of incident changes without a decision: severity, or resolved."""
    numbers = {incident.id: incident.number for incident in incidents}
    for entry in log.take(AuditAction.INCIDENT_CHANGED):
        title = _change_title(entry, log)
        if title is None:
            continue
        number_ = numbers.get(entry.subject)
        name = "Incident" if number_ is None else f"Incident {number_}"
        yield TimelineEntry(
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
    return "resolved" if is_resolved and entry.at not in log.changed_at(entry.subject) else None


_VERBS: Final[Mapping[CommandState, str]] = {
    CommandState.REJECTED: "rejected",
    CommandState.FAILED: "failed",
    CommandState.EXPIRED: "expired",
    CommandState.CANCELLED: "cancelled",
}


def command_entries(
    commands: Sequence[Command],
    incidents: Sequence[Incident],
    log: AuditIndex,
    global_batch: int | None,
) -> Iterator[TimelineEntry]:
    """Build the entries of commands: sent, approved, and how they ended."""
    decided = log.decided_commands() | {
        decision.command_id for incident in incidents for decision in incident.decisions
    }
    for command in commands:
        created = next(log.take(AuditAction.COMMAND_CREATED, command.id), None)
        if command.id not in decided:
            yield _ordered(command, created, global_batch)
        yield from _changes(command, log, ReadBackContext(global_batch=global_batch))
    yield from _unlisted(log)


def _unlisted(log: AuditIndex) -> Iterator[TimelineEntry]:
    """Build the entries of commands that are only in the audit log."""
    for action in (AuditAction.COMMAND_CREATED, AuditAction.COMMAND_CHANGED):
        for entry in log.take(action):
            state = (entry.after or {}).get("state", "changed")
            yield TimelineEntry(
                key=f"audit-{entry.id}",
                kind=EntryKind.ORDERED,
                title=f"Command {state}",
                text=capital(entry.message or phrase(entry.reason)),
                actor=entry.actor,
                at=entry.at,
                command_id=entry.subject,
            )


def _ordered(
    command: Command, created: AuditEntry | None, global_batch: int | None
) -> TimelineEntry:
    message = command.message if created is None else created.message
    reason = command.reason if created is None else created.reason.value
    sentence = command_sentence(command.parameters, global_batch=global_batch)
    by_user = is_user(command.actor) and message
    why = f"Reason: {message}" if by_user else capital(reason_phrase(reason))
    return TimelineEntry(
        key=f"command-{command.id}",
        kind=EntryKind.ORDERED,
        title=f"Sent: {command_title(command.parameters)}",
        text=f"{capital(sentence)}. {why}",
        actor=command.actor,
        at=command.issued_at,
        attempt=command.attempt,
        step=command.issued_step,
        tone="violet",
        command_id=command.id,
        incident_id=command.incident_id,
        details=(("policy message", message),) if message and not by_user else (),
    )


def _changes(command: Command, log: AuditIndex, known: ReadBackContext) -> Iterator[TimelineEntry]:
    is_listed = False
    for entry in log.take(AuditAction.COMMAND_CHANGED, command.id):
        before, after = (entry.before or {}).get("state"), (entry.after or {}).get("state")
        if before == after:  # job and collector both let it expire
            continue
        if entry.reason == AuditReason.APPROVED_BY_PERSON:
            yield _moved(command, entry, "Approved")
        elif after == CommandState.DELIVERED.value:
            if not command.is_settled:
                yield _moved(command, entry, "Delivered")
        elif str(after) in set(CommandState):
            state = CommandState(str(after))
            is_listed = is_listed or state is command.state
            yield _settled(command, state, entry, known)
    if command.is_settled and not is_listed:
        yield _settled(command, command.state, None, known)


def _moved(command: Command, entry: AuditEntry, verb: str) -> TimelineEntry:
    text = entry.message or capital(phrase(entry.reason))
    return TimelineEntry(
        key=f"audit-{entry.id}",
        kind=EntryKind.ORDERED,
        title=f"{verb}: {command_title(command.parameters)}",
        text=text,
        actor=entry.actor,
        at=entry.at,
        attempt=command.attempt,
        tone="blue",
        command_id=command.id,
        incident_id=command.incident_id,
    )


def _settled(
    command: Command, state: CommandState, entry: AuditEntry | None, known: ReadBackContext
) -> TimelineEntry:
    applied = state is CommandState.APPLIED
    result = command.result if state is command.state else None
    message = command.message if entry is None else entry.message
    verdict = verify(command, known)
    text = _settled_text(command, state, entry, verdict)
    if result is None and message:
        text = f"{text}: {message}"
    return TimelineEntry(
        key=f"command-{command.id}-{state}",
        kind=EntryKind.DONE if applied else EntryKind.REFUSED,
        title=f"{'Applied' if applied else capital(_VERBS.get(state, state.value))}: "
        f"{command_title(command.parameters)}",
        text=text,
        actor=_actor(command, entry),
        at=_settled_at(command, entry),
        attempt=command.attempt,
        step=None if result is None else result.applied_step,
        tone="red" if applied and verdict.ok is False else badge_style(state).tone,
        command_id=command.id,
        incident_id=command.incident_id,
        details=() if result is None else tuple(_settled_details(command)),
        job_message="" if result is None else result.message,
    )


def _settled_at(command: Command, entry: AuditEntry | None) -> datetime | None:
    return command.settled_at if entry is None else entry.at


def _actor(command: Command, entry: AuditEntry | None) -> str:
    if entry is not None:
        return entry.actor
    return "job" if command.result is not None else "collector"


def _settled_text(
    command: Command, state: CommandState, entry: AuditEntry | None, verdict: ReadBackVerdict
) -> str:
    if state is not CommandState.APPLIED:
        reason = command.reason if entry is None else entry.reason.value
        return capital(reason_phrase(reason))
    read_back = None if command.result is None else command.result.read_back
    if read_back is None:
        return "No read-back from the job"
    text = f"At step {count(read_back.step)} in attempt {read_back.attempt}"
    if read_back.skipped_samples:
        text += f", {count(read_back.skipped_samples)} samples skipped"
    text += f", lr_scale {number(read_back.lr_scale)}"
    wrong = [check.what for check in verdict.checks if check.ok is False]
    if wrong:
        text += f". Differs from the command: {', '.join(wrong)}"
    if entry is not None and entry.reason == AuditReason.CARRIED_OUT_LATE:
        text += ". Applied after it had expired"
    return text


def _settled_details(command: Command) -> Iterator[tuple[str, str]]:
    if command.delivered_at is not None:
        yield "delivered", moment(command.delivered_at)
    read_back = None if command.result is None else command.result.read_back
    if read_back is None:
        return
    yield "position in the data", f"sample {count(read_back.samples)}"
    for group, rate in read_back.lr.items():
        yield f"learning rate of group {group}", number(rate)
    if read_back.checkpoint_path is not None:
        yield "checkpoint", read_back.checkpoint_path


def attempt_entries(
    attempts: Sequence[Attempt], commands: Mapping[str, Command], log: AuditIndex
) -> Iterator[TimelineEntry]:
    """Build the entries of attempts, except those that an applied rollback started."""
    registered = {entry.at: entry for entry in log.take(AuditAction.RUN_REGISTERED)}
    audited = {
        str((entry.after or {}).get("attempt")): entry
        for entry in log.take(AuditAction.ATTEMPT_STARTED)
    }
    for attempt in attempts:
        entry = audited.pop(str(attempt.number), None)
        by_command = commands.get(attempt.command_id or "")
        at = attempt.started_at if entry is None else entry.at
        registration = registered.pop(at, None)
        if by_command is not None and by_command.state is CommandState.APPLIED:
            continue
        yield _attempt(attempt, registration)
    for attempt_number, entry in audited.items():
        started_by = commands.get(str((entry.after or {}).get("command_id")))
        if started_by is None or started_by.state is not CommandState.APPLIED:
            yield replace(plain_entry(entry), title=f"Attempt {attempt_number} started")
    for entry in registered.values():
        yield plain_entry(entry)


def _attempt(attempt: Attempt, registration: AuditEntry | None) -> TimelineEntry:
    facts = [] if registration is None else list(_differences(registration))
    if attempt.skipped_samples:
        facts.append(("samples skipped", count(attempt.skipped_samples)))
    how = _how(attempt) if registration is None else "Job registered"
    after = "" if attempt.parent is None else f", after attempt {attempt.parent}"
    return TimelineEntry(
        key=f"attempt-{attempt.number}",
        kind=EntryKind.JOB,
        title=f"Attempt {attempt.number} started at step {count(attempt.from_step)}",
        text=f"{how}{after}",
        actor="job",
        at=attempt.started_at,
        attempt=attempt.number,
        step=attempt.from_step,
        tone="teal",
        command_id=attempt.command_id,
        details=tuple(facts),
    )


def _how(attempt: Attempt) -> str:
    is_known = attempt.reason in set(MarkerKind)
    return capital(phrase(MarkerKind(attempt.reason)) if is_known else attempt.reason)


def marker_entries(
    markers: Sequence[MarkerInfo], commands: Sequence[Command]
) -> Iterator[TimelineEntry]:
    """Build the entries of markers, except those that an applied command or an attempt explains."""
    explained = {place for command in commands for place in _lr_places(command)}
    for marker in markers:
        is_start = marker.kind in (MarkerKind.RESUME, MarkerKind.ROLLBACK)
        is_by_command = (marker.attempt, marker.step) in explained
        if is_start or (marker.kind is MarkerKind.LR_CHANGE and is_by_command):
            continue
        name = f"{marker.attempt}\x1f{marker.step}\x1f{marker.kind}\x1f{marker.text}"
        digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        yield TimelineEntry(
            key=f"marker-{digest}",
            kind=EntryKind.JOB,
            title=capital(phrase(marker.kind)),
            text=marker.text,
            actor="job",
            at=marker.at,
            attempt=marker.attempt,
            step=marker.step,
            tone="blue",
        )


def _lr_places(command: Command) -> Iterator[tuple[int, int]]:
    """Return attempt and step of the learning-rate marker that a command causes."""
    result = command.result
    if command.state is not CommandState.APPLIED or result is None:
        return
    if command.kind is CommandKind.REDUCE_LR and result.applied_step is not None:
        yield command.attempt, result.applied_step
    if command.kind is CommandKind.ROLLBACK and result.read_back is not None:
        yield result.read_back.attempt, result.read_back.step


def setting_entries(log: AuditIndex) -> Iterator[TimelineEntry]:
    """Build the entries of the remaining audit log: states, modes, rules, silences, disarming."""
    for entry in log.rest():
        match entry.action:
            case AuditAction.RUN_STATE_CHANGED:
                yield _state_change(entry)
            case AuditAction.RUN_MODE_CHANGED:
                yield _changed(
                    entry, f"Mode: {_of(entry.before, 'mode')} {ARROW} {_of(entry.after, 'mode')}"
                )
            case AuditAction.SILENCE_CREATED:
                yield _changed(entry, f"Silenced: {_silence(entry.after)}")
            case AuditAction.SILENCE_REMOVED:
                yield _changed(entry, f"Silence ended: {_silence(entry.before)}")
            case _:
                yield plain_entry(entry)


def _state_change(entry: AuditEntry) -> TimelineEntry:
    state = _of(entry.after, "state")
    meaning = phrase(RunState(state)) if state in set(RunState) else ""
    return TimelineEntry(
        key=f"audit-{entry.id}",
        kind=EntryKind.JOB,
        title=f"Run {state}",
        text=entry.message or capital(meaning),
        actor=entry.actor,
        at=entry.at,
        tone=badge_style(RunState(state)).tone if meaning else "gray",
    )


def _changed(entry: AuditEntry, title: str) -> TimelineEntry:
    return TimelineEntry(
        key=f"audit-{entry.id}",
        kind=EntryKind.SETTING,
        title=title,
        text=entry.message,
        actor=entry.actor,
        at=entry.at,
        tone="blue",
    )


def plain_entry(entry: AuditEntry) -> TimelineEntry:
    """Build the entry of any other audit entry."""
    return TimelineEntry(
        key=f"audit-{entry.id}",
        kind=EntryKind.SETTING,
        title=capital(phrase(entry.action)),
        text=entry.message or capital(phrase(entry.reason)),
        actor=entry.actor,
        at=entry.at,
        details=tuple(_differences(entry)),
    )


def _differences(entry: AuditEntry) -> Iterator[tuple[str, str]]:
    """Return the fields that differ between before and after."""
    before, after = entry.before or {}, entry.after or {}
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if old == new or new is None:
            continue
        text = str(new) if name not in before else f"{old} {ARROW} {new}"
        yield name.replace("_", " "), text


def _of(values: Mapping[str, object] | None, name: str) -> str:
    value = (values or {}).get(name)
    return "unknown" if value is None else str(value)


def _silence(values: Mapping[str, object] | None) -> str:
    rule = _of(values, "rule")
    text = "all rules" if rule == "*" else f"rule {rule}"
    until_step = (values or {}).get("until_step")
    if isinstance(until_step, int):
        return f"{text} until step {count(until_step)}"
    return f"{text} until {_moment(values)}"


def _moment(silence: Mapping[str, object] | None) -> str:
    text = _of(silence, "until")
    try:
        return moment(datetime.fromisoformat(text))
    except ValueError:
        return text
