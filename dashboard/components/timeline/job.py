"""What the job told of itself, and what people changed, as lines of the log book."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from dashboard.components.badges import look
from dashboard.components.timeline.entry import Entry, EntryKind
from dashboard.components.timeline.log import AuditIndex
from dashboard.words.amounts import count
from dashboard.words.phrases import capital, phrase
from stabilizer.protocol.batches import MarkerKind
from stabilizer.protocol.commands import Command, CommandKind, CommandState
from stabilizer.protocol.queries import AuditAction, AuditEntry
from stabilizer.protocol.runs import Attempt, RunState
from stabilizer.protocol.views import MarkerInfo


def attempt_entries(
    attempts: Sequence[Attempt], commands: Mapping[str, Command], log: AuditIndex
) -> Iterator[Entry]:
    """Tell where attempts begin, but for those that an applied rollback has told already."""
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
    for number, entry in audited.items():
        started_by = commands.get(str((entry.after or {}).get("command_id")))
        if started_by is None or started_by.state is not CommandState.APPLIED:
            yield replace(plain_entry(entry), title=f"Attempt {number} begins")
    for entry in registered.values():
        yield plain_entry(entry)


def _attempt(attempt: Attempt, registration: AuditEntry | None) -> Entry:
    facts = [] if registration is None else list(_differences(registration))
    if attempt.skipped_samples:
        facts.append(("samples skipped", count(attempt.skipped_samples)))
    how = _how(attempt) if registration is None else "The job registers"
    after = "" if attempt.parent is None else f", after attempt {attempt.parent}"
    return Entry(
        key=f"attempt-{attempt.number}",
        kind=EntryKind.JOB,
        title=f"Attempt {attempt.number} begins at step {count(attempt.from_step)}",
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


def marker_entries(markers: Sequence[MarkerInfo], commands: Sequence[Command]) -> Iterator[Entry]:
    """Tell the job's events, but for those that an applied command or an attempt has told."""
    told = {place for command in commands for place in _lr_places(command)}
    for marker in markers:
        is_start = marker.kind in (MarkerKind.RESUME, MarkerKind.ROLLBACK)
        is_told = marker.kind is MarkerKind.LR_CHANGE and (marker.attempt, marker.step) in told
        if is_start or is_told:
            continue
        name = f"{marker.attempt}\x1f{marker.step}\x1f{marker.kind}\x1f{marker.text}"
        digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
        yield Entry(
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
    """Return where the job tells a changed rate because of a command."""
    result = command.result
    if command.state is not CommandState.APPLIED or result is None:
        return
    if command.kind is CommandKind.REDUCE_LR and result.applied_step is not None:
        yield command.attempt, result.applied_step
    if command.kind is CommandKind.ROLLBACK and result.read_back is not None:
        yield result.read_back.attempt, result.read_back.step


def setting_entries(log: AuditIndex) -> Iterator[Entry]:
    """Tell what is left in the audit log: states, modes, rules, silences, the switch."""
    for entry in log.rest():
        match entry.action:
            case AuditAction.RUN_STATE_CHANGED:
                yield _state_change(entry)
            case AuditAction.RUN_MODE_CHANGED:
                yield _changed(
                    entry, f"Mode: {_of(entry.before, 'mode')}, now {_of(entry.after, 'mode')}"
                )
            case AuditAction.SILENCE_CREATED:
                yield _changed(entry, f"Silenced: {_silence(entry.after)}")
            case AuditAction.SILENCE_REMOVED:
                yield _changed(entry, f"No longer silenced: {_silence(entry.before)}")
            case _:
                yield plain_entry(entry)


def _state_change(entry: AuditEntry) -> Entry:
    state = _of(entry.after, "state")
    meaning = phrase(RunState(state)) if state in set(RunState) else ""
    return Entry(
        key=f"audit-{entry.id}",
        kind=EntryKind.JOB,
        title=f"The run is {state}",
        text=entry.message or capital(meaning),
        actor=entry.actor,
        at=entry.at,
        tone=look(RunState(state)).tone if meaning else "gray",
    )


def _changed(entry: AuditEntry, title: str) -> Entry:
    return Entry(
        key=f"audit-{entry.id}",
        kind=EntryKind.SETTING,
        title=title,
        text=entry.message,
        actor=entry.actor,
        at=entry.at,
        tone="blue",
    )


def plain_entry(entry: AuditEntry) -> Entry:
    """Tell an audit entry that nothing else explains."""
    return Entry(
        key=f"audit-{entry.id}",
        kind=EntryKind.SETTING,
        title=capital(phrase(entry.action)),
        text=entry.message or capital(phrase(entry.reason)),
        actor=entry.actor,
        at=entry.at,
        details=tuple(_differences(entry)),
    )


def _differences(entry: AuditEntry) -> Iterator[tuple[str, str]]:
    """Name what differs between before and after."""
    before, after = entry.before or {}, entry.after or {}
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if old == new or new is None:
            continue
        text = str(new) if name not in before else f"{old}, now {new}"
        yield name.replace("_", " "), text


def _of(values: Mapping[str, object] | None, name: str) -> str:
    value = (values or {}).get(name)
    return "not known" if value is None else str(value)


def _silence(values: Mapping[str, object] | None) -> str:
    rule = _of(values, "rule")
    text = "all rules" if rule == "*" else f"rule {rule}"
    until_step = (values or {}).get("until_step")
    if isinstance(until_step, int):
        return f"{text} until step {count(until_step)}"
    return f"{text} until {_of(values, 'until')}"
