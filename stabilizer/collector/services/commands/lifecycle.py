"""The state machine of commands: allowed transitions, and the functions that make them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from stabilizer.collector.services.unit_of_work import AuditEvent, Reason, RunTransaction
from stabilizer.collector.storage.models import CommandRow
from stabilizer.errors import ConflictError
from stabilizer.protocol.commands import (
    SETTLED_STATES,
    CommandParameters,
    CommandState,
    RejectReason,
)
from stabilizer.protocol.decisions import DecisionReason
from stabilizer.protocol.queries import AuditAction

TRANSITIONS: Final[Mapping[CommandState, frozenset[CommandState]]] = {
    CommandState.PROPOSED: frozenset(
        {
            CommandState.PENDING,
            CommandState.REJECTED,
            CommandState.CANCELLED,
            CommandState.EXPIRED,
        }
    ),
    CommandState.PENDING: frozenset(
        {CommandState.DELIVERED, CommandState.CANCELLED, CommandState.EXPIRED}
    ),
    CommandState.DELIVERED: frozenset(
        {
            CommandState.APPLIED,
            CommandState.REJECTED,
            CommandState.FAILED,
            CommandState.EXPIRED,
        }
    ),
    # The job may have applied it while its result was in transit: the job is authoritative.
    CommandState.EXPIRED: frozenset(
        {CommandState.APPLIED, CommandState.REJECTED, CommandState.FAILED}
    ),
    CommandState.APPLIED: frozenset(),
    CommandState.REJECTED: frozenset(),
    CommandState.FAILED: frozenset(),
    CommandState.CANCELLED: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Who moved a command, and why."""

    actor: str
    reason: Reason
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandDraft:
    """A command before it is written."""

    parameters: CommandParameters
    state: CommandState
    reason: DecisionReason
    message: str
    actor: str
    lifetime: timedelta
    key: str | None = None
    """The policy's key; None for a manual command."""
    attempt: int
    issued_step: int | None
    incident_id: str | None = None


def write_command(tx: RunTransaction, draft: CommandDraft) -> CommandRow:
    """Store a new command. It can be sent only after the transaction has committed."""
    command_id = uuid.uuid4().hex
    row = CommandRow(
        id=command_id,
        run_id=tx.run.id,
        number=tx.repos.commands.next_number(tx.run.id),
        key=draft.key or command_id,
        attempt=draft.attempt,
        kind=draft.parameters.kind.value,
        parameters=draft.parameters.model_dump(mode="json"),
        state=draft.state.value,
        reason=draft.reason.value,
        message=draft.message,
        issued_reason=draft.reason.value,
        issued_message=draft.message,
        incident_id=draft.incident_id,
        actor=draft.actor,
        fence=0,
        issued_step=draft.issued_step,
        issued_at=tx.now,
        expires_at=tx.now + draft.lifetime,
        delivered_at=None,
        settled_at=None,
        result=None,
    )
    tx.repos.commands.add(row)
    tx.changed_commands.append(row)
    tx.audit(
        AuditEvent(
            actor=draft.actor,
            action=AuditAction.COMMAND_CREATED,
            reason=draft.reason,
            subject=command_id,
            message=draft.message,
            after={"state": row.state, "attempt": row.attempt, "parameters": row.parameters},
        )
    )
    return row


def move_command(tx: RunTransaction, row: CommandRow, to: CommandState, cause: Cause) -> None:
    """Move a command to its next state, with an audit event.

    Raises:
        ConflictError: The table does not allow it; code `command_settled`.
    """
    before = CommandState(row.state)
    if to not in TRANSITIONS[before]:
        raise ConflictError(
            f"command {row.id} is {before.value} and cannot become {to.value}",
            code="command_settled",
        )
    row.state = to.value
    if to is CommandState.DELIVERED:
        row.delivered_at = tx.now
    if to in SETTLED_STATES:
        row.settled_at = tx.now
        _note_why(row, to, cause)
    tx.changed_commands.append(row)
    tx.audit(
        AuditEvent(
            actor=cause.actor,
            action=AuditAction.COMMAND_CHANGED,
            reason=cause.reason,
            subject=row.id,
            message=cause.message,
            before={"state": before.value},
            after={"state": to.value} | ({"result": row.result} if row.result else {}),
        )
    )


def _note_why(row: CommandRow, to: CommandState, cause: Cause) -> None:
    row.reason, row.message = row.issued_reason, row.issued_message
    if to is CommandState.APPLIED:
        return
    if isinstance(cause.reason, RejectReason | DecisionReason):
        row.reason = cause.reason.value
    if cause.message:
        row.message = cause.message


def expire_due(tx: RunTransaction) -> int:
    """Expire the run's commands whose time has passed; return how many."""
    due = [
        row for row in tx.repos.commands.of_run(tx.run.id, _UNSETTLED) if row.expires_at <= tx.now
    ]
    for row in due:
        cause = Cause(
            actor="collector",
            reason=RejectReason.EXPIRED,
            message=f"not taken by the job by {row.expires_at.isoformat(timespec='seconds')}",
        )
        move_command(tx, row, CommandState.EXPIRED, cause)
    return len(due)


def withdraw(
    tx: RunTransaction, cause: Cause, *, policy_only: bool, states: frozenset[CommandState]
) -> int:
    """Cancel the run's commands that have not been delivered; return how many.

    Args:
        tx: The run.
        cause: Who, and why.
        policy_only: Leave manual commands.
        states: PROPOSED, PENDING or both.
    """
    rows = [
        row
        for row in tx.repos.commands.of_run(tx.run.id, states)
        if not policy_only or row.actor == "policy"
    ]
    for row in rows:
        move_command(tx, row, CommandState.CANCELLED, cause)
    return len(rows)


UNDELIVERED: Final = frozenset({CommandState.PROPOSED, CommandState.PENDING})
_UNSETTLED: Final = UNDELIVERED | {CommandState.DELIVERED}
