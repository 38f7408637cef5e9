"""Attempts of a run: named by the job, numbered as they arrive."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from stabilizer.collector.services.commands.lifecycle import UNDELIVERED, Cause, withdraw
from stabilizer.collector.services.unit_of_work import COLLECTOR, JOB, AuditEvent, RunTransaction
from stabilizer.collector.storage.models import AttemptRow
from stabilizer.errors import ConflictError
from stabilizer.protocol.batches import AttemptStart, BatchHeader, NamesAttempt, SnapshotInfo
from stabilizer.protocol.commands import RejectReason
from stabilizer.protocol.queries import AuditAction, AuditReason

UNKNOWN: Final = 0
"""Number of an attempt that has not arrived."""


def find_attempt(tx: RunTransaction, named: NamesAttempt) -> AttemptRow | None:
    """Return the attempt that a message names, or None.

    A number names only an attempt of a job of protocol version 1, which counts its attempts itself.
    """
    if named.attempt_id is not None:
        return tx.repos.attempts.by_id(tx.run.id, named.attempt_id)
    row = _numbered(tx, named)
    return None if minted_id(row) is not None else row


def number_of(tx: RunTransaction, named: NamesAttempt) -> int:
    """Return the number of the attempt that a message names; `UNKNOWN` if it has not arrived."""
    row = find_attempt(tx, named)
    if row is not None:
        return row.number
    if named.attempt is None or named.attempt_id is not None or _numbered(tx, named) is not None:
        return UNKNOWN
    return named.attempt


def is_newest(tx: RunTransaction, number: int) -> bool:
    """Return whether a message of this attempt changes the state of the run.

    That is the newest attempt, or one that a job of protocol version 1 names before its first
    batch; but neither an earlier one nor one that arrived late.
    """
    if number <= tx.run.attempt:
        return number == tx.run.attempt
    return tx.repos.attempts.get(tx.run.id, number) is None


def _numbered(tx: RunTransaction, named: NamesAttempt) -> AttemptRow | None:
    return None if named.attempt is None else tx.repos.attempts.get(tx.run.id, named.attempt)


def derived_id(run_id: str, number: int) -> str:
    """Return the id of an attempt whose job only numbers it; migration 0005 does the same."""
    return hashlib.blake2b(f"{run_id}/{number}".encode(), digest_size=16).hexdigest()


def minted_id(row: AttemptRow | None) -> str | None:
    """Return the id that the job minted; None where it only numbers its attempts."""
    if row is None or row.attempt_id == derived_id(row.run_id, row.number):
        return None
    return row.attempt_id


def receive_attempt(tx: RunTransaction, header: BatchHeader) -> AttemptRow:
    """Return the attempt of a batch; number it if it has not been seen before.

    A new attempt of the process that registered last becomes the run's newest. One of an earlier
    process, whose spool arrives late, is only stored.

    Raises:
        ConflictError: It is not known and the batch does not say where it begins; code
            `unknown_attempt`.
    """
    known = find_attempt(tx, header)
    if known is not None:
        return known
    start = header.attempt_start
    if start is None:
        raise unknown_attempt(tx, header)
    if header.attempt_id is None:
        number = number_of(tx, header)
        if number == UNKNOWN:
            raise unknown_attempt(tx, header)
        attempt_id = derived_id(tx.run.id, number)
        if number > tx.run.attempt:
            return begin_attempt(tx, number, attempt_id, start)
        return _add(tx, number, attempt_id, start, late=False)
    number = tx.repos.attempts.next_number(tx.run.id)
    newest = tx.repos.attempts.get(tx.run.id, tx.run.attempt)
    if newest is None or start.origin_id == newest.origin_id:
        return begin_attempt(tx, number, header.attempt_id, start)
    return _add(tx, number, header.attempt_id, start, late=True)


def unknown_attempt(tx: RunTransaction, named: NamesAttempt) -> ConflictError:
    """Build the error for a batch of an unknown attempt that does not say where it begins."""
    return ConflictError(
        f"the run has no attempt {named.attempt_id or named.attempt}; its newest is "
        f"{tx.run.attempt}; send attempt_start with the batch",
        code="unknown_attempt",
    )


def begin_attempt(
    tx: RunTransaction, number: int, attempt_id: str, start: AttemptStart
) -> AttemptRow:
    """Make an attempt the run's newest. Undelivered commands for earlier ones are withdrawn."""
    row = _add(tx, number, attempt_id, start, late=False)
    tx.run.attempt = number
    tx.run.step = start.from_step
    tx.run.stepped_at = tx.now
    cause = Cause(
        actor=COLLECTOR,
        reason=RejectReason.PAST_ATTEMPT,
        message=f"attempt {number} has begun",
    )
    withdraw(tx, cause, policy_only=False, states=UNDELIVERED)
    tx.judge.settle(tx)
    tx.judge.begin_attempt(tx, row)
    return row


def number_snapshots(
    tx: RunTransaction, snapshots: Sequence[SnapshotInfo], newest: int
) -> tuple[SnapshotInfo, ...]:
    """Set the number of the attempt in which each snapshot was taken.

    Args:
        tx: Of the run.
        snapshots: The job's inventory.
        newest: Stands for an attempt of which no batch has arrived.
    """
    numbers: dict[str, int] = {}
    numbered = []
    for snapshot in snapshots:
        if snapshot.attempt_id is None:
            numbered.append(snapshot)
            continue
        if snapshot.attempt_id not in numbers:
            row = tx.repos.attempts.by_id(tx.run.id, snapshot.attempt_id)
            numbers[snapshot.attempt_id] = newest if row is None else row.number
        numbered.append(snapshot.model_copy(update={"attempt": numbers[snapshot.attempt_id]}))
    return tuple(numbered)


def _add(
    tx: RunTransaction, number: int, attempt_id: str, start: AttemptStart, *, late: bool
) -> AttemptRow:
    parent, parent_id = start.parent, start.parent_id
    if parent_id is not None:
        found = tx.repos.attempts.by_id(tx.run.id, parent_id)
        parent = None if found is None else found.number
    elif parent is not None:
        parent_id = derived_id(tx.run.id, parent)
    row = AttemptRow(
        run_id=tx.run.id,
        number=number,
        attempt_id=attempt_id,
        origin_id=start.origin_id or attempt_id,
        parent_id=parent_id,
        from_step=start.from_step,
        last_step=start.from_step,
        parent=parent,
        reason=start.reason.value,
        command_id=start.command_id,
        skipped_samples=start.skipped_samples,
        started_at=tx.now,
        accepted_sequence=-1,
        late=late,
        num_batches=0,
    )
    tx.repos.attempts.add(row)
    tx.repos.attempts.adopt(row)
    tx.audit(
        AuditEvent(
            actor=JOB,
            action=AuditAction.ATTEMPT_STARTED,
            reason=AuditReason.REPORTED_BY_JOB,
            subject=tx.run.id,
            message=f"attempt {number} from step {start.from_step}",
            after={"attempt": number, **start.model_dump(mode="json"), "parent": parent},
        )
    )
    return row
