"""Commands as lines of the log book."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

from dashboard.components.badges import look
from dashboard.components.command.progress import Baseline, Verdict, verify
from dashboard.components.timeline.entry import Entry, EntryKind
from dashboard.components.timeline.log import AuditIndex
from dashboard.words.amounts import count, moment, number
from dashboard.words.phrases import (
    capital,
    command_sentence,
    command_title,
    is_person,
    phrase,
    reason_phrase,
)
from stabilizer.protocol.commands import Command, CommandState
from stabilizer.protocol.decisions import Incident
from stabilizer.protocol.queries import AuditAction, AuditEntry, AuditReason

_VERBS: Final[Mapping[CommandState, str]] = {
    CommandState.REJECTED: "rejected",
    CommandState.FAILED: "failed",
    CommandState.EXPIRED: "expired",
    CommandState.CANCELLED: "taken back",
}


def command_entries(
    commands: Sequence[Command],
    incidents: Sequence[Incident],
    log: AuditIndex,
    global_batch: int | None,
) -> Iterator[Entry]:
    """Tell each command's life: given, approved, and how it ended."""
    decided = log.decided_commands() | {
        decision.command_id for incident in incidents for decision in incident.decisions
    }
    for command in commands:
        created = next(log.take(AuditAction.COMMAND_CREATED, command.id), None)
        if command.id not in decided:
            yield _ordered(command, created, global_batch)
        yield from _changes(command, log, Baseline(global_batch=global_batch))
    yield from _unlisted(log)


def _unlisted(log: AuditIndex) -> Iterator[Entry]:
    """Tell what only the audit log knows of commands that were not given."""
    for action in (AuditAction.COMMAND_CREATED, AuditAction.COMMAND_CHANGED):
        for entry in log.take(action):
            state = (entry.after or {}).get("state", "changed")
            yield Entry(
                key=f"audit-{entry.id}",
                kind=EntryKind.ORDERED,
                title=f"A command is {state}",
                text=capital(entry.message or phrase(entry.reason)),
                actor=entry.actor,
                at=entry.at,
                command_id=entry.subject,
            )


def _ordered(command: Command, created: AuditEntry | None, global_batch: int | None) -> Entry:
    message = command.message if created is None else created.message
    reason = command.reason if created is None else created.reason.value
    sentence = command_sentence(command.parameters, global_batch=global_batch)
    by_person = is_person(command.actor) and message
    why = f"Reason: {message}" if by_person else capital(reason_phrase(reason))
    return Entry(
        key=f"command-{command.id}",
        kind=EntryKind.ORDERED,
        title=f"Ordered: {command_title(command.parameters)}",
        text=f"{capital(sentence)}. {why}",
        actor=command.actor,
        at=command.issued_at,
        attempt=command.attempt,
        step=command.issued_step,
        tone="violet",
        command_id=command.id,
        incident_id=command.incident_id,
        details=(("in the policy's words", message),) if message and not by_person else (),
    )


def _changes(command: Command, log: AuditIndex, known: Baseline) -> Iterator[Entry]:
    is_told = False
    for entry in log.take(AuditAction.COMMAND_CHANGED, command.id):
        before, after = (entry.before or {}).get("state"), (entry.after or {}).get("state")
        if before == after:  # both clocks said that it had expired
            continue
        if entry.reason == AuditReason.APPROVED_BY_PERSON:
            yield _moved(command, entry, "Approved")
        elif after == CommandState.DELIVERED.value:
            if not command.is_settled:
                yield _moved(command, entry, "Delivered")
        elif str(after) in set(CommandState):
            state = CommandState(str(after))
            is_told = is_told or state is command.state
            yield _settled(command, state, entry, known)
    if command.is_settled and not is_told:
        yield _settled(command, command.state, None, known)


def _moved(command: Command, entry: AuditEntry, verb: str) -> Entry:
    text = entry.message or capital(phrase(entry.reason))
    return Entry(
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
    command: Command, state: CommandState, entry: AuditEntry | None, known: Baseline
) -> Entry:
    applied = state is CommandState.APPLIED
    result = command.result if state is command.state else None
    message = command.message if entry is None else entry.message
    verdict = verify(command, known)
    text = _settled_text(command, state, entry, verdict)
    if result is None and message:
        text = f"{text}: {message}"
    return Entry(
        key=f"command-{command.id}-{state}",
        kind=EntryKind.DONE if applied else EntryKind.REFUSED,
        title=f"{'Applied' if applied else capital(_VERBS.get(state, state.value))}: "
        f"{command_title(command.parameters)}",
        text=text,
        actor=_actor(command, entry),
        at=_settled_at(command, entry),
        attempt=command.attempt,
        step=None if result is None else result.applied_step,
        tone="red" if applied and verdict.ok is False else look(state).tone,
        command_id=command.id,
        incident_id=command.incident_id,
        details=() if result is None else tuple(_settled_details(command)),
        words="" if result is None else result.message,
    )


def _settled_at(command: Command, entry: AuditEntry | None) -> datetime | None:
    return command.settled_at if entry is None else entry.at


def _actor(command: Command, entry: AuditEntry | None) -> str:
    if entry is not None:
        return entry.actor
    return "job" if command.result is not None else "collector"


def _settled_text(
    command: Command, state: CommandState, entry: AuditEntry | None, verdict: Verdict
) -> str:
    if state is not CommandState.APPLIED:
        reason = command.reason if entry is None else entry.reason.value
        return capital(reason_phrase(reason))
    read_back = None if command.result is None else command.result.read_back
    if read_back is None:
        return "The job read nothing back"
    text = f"Stands at step {count(read_back.step)} in attempt {read_back.attempt}"
    if read_back.skipped_samples:
        text += f", {count(read_back.skipped_samples)} samples skipped"
    text += f", lr_scale {number(read_back.lr_scale)}"
    wrong = [check.what for check in verdict.checks if check.ok is False]
    if wrong:
        text += f". Not as ordered: {', '.join(wrong)}"
    if entry is not None and entry.reason == AuditReason.CARRIED_OUT_LATE:
        text += ". Carried out after it had been given up"
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
