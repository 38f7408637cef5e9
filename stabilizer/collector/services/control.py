"""The global switch and silences."""

from __future__ import annotations

import uuid
from datetime import datetime

from stabilizer.collector.services.change_feed import Change
from stabilizer.collector.services.commands.lifecycle import Cause, withdraw
from stabilizer.collector.services.runs.presence import LIVING
from stabilizer.collector.services.unit_of_work import AuditEvent, UnitOfWork, audit
from stabilizer.collector.storage.models import ControlRow, SilenceRow
from stabilizer.collector.storage.repositories import Repositories
from stabilizer.collector.storage.repositories.control import to_silence
from stabilizer.errors import InvalidInputError, NotFoundError
from stabilizer.protocol.commands import CommandState
from stabilizer.protocol.decisions import DecisionReason
from stabilizer.protocol.queries import (
    AuditAction,
    AuditReason,
    ControlState,
    ControlUpdate,
    Note,
    Silence,
    SilenceCreate,
)
from stabilizer.protocol.runs import RunState


class ControlService:
    """The global switch and silences."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow

    def get(self) -> ControlState:
        """Return the state of the switch and the silences in force."""
        with self._uow.reading() as repos:
            row = repos.control.get()
            silences = tuple(_in_force(repos, self._uow.clock.now()))
        if row is None:
            return ControlState(
                disarmed=False, reason="", actor="", changed_at=None, silences=silences
            )
        return ControlState(
            disarmed=row.disarmed,
            reason=row.reason,
            actor=row.actor,
            changed_at=row.changed_at,
            silences=silences,
        )

    def update(self, update: ControlUpdate, actor: str) -> ControlState:
        """Disarm or arm the policy on all runs.

        Disarming also cancels undelivered commands of the policy. Manual commands and proposals are
        kept.
        """
        with self._uow.writing() as repos:
            now = self._uow.clock.now()
            before = repos.control.get()
            was = before is not None and before.disarmed
            repos.control.put(
                ControlRow(
                    id=1,
                    disarmed=update.disarmed,
                    reason=update.reason,
                    actor=actor,
                    changed_at=now,
                )
            )
            event = AuditEvent(
                actor=actor,
                action=AuditAction.DISARMED if update.disarmed else AuditAction.ARMED,
                reason=AuditReason.REQUESTED_BY_PERSON,
                subject="control",
                message=update.reason,
                before={"disarmed": was},
                after={"disarmed": update.disarmed},
            )
            audit(repos, now, None, event)
        self._notify()
        if update.disarmed:
            self._withdraw_everywhere(Cause(actor=actor, reason=DecisionReason.DISARMED))
        return self.get()

    def _withdraw_everywhere(self, cause: Cause) -> None:
        # Lock every run, not only those with a pending command: a command that is being decided
        # now must be cancelled as well.
        with self._uow.reading() as repos:
            run_ids = repos.runs.ids(LIVING | {RunState.LOST})
        for run_id in run_ids:
            try:
                with self._uow.run(run_id) as tx:
                    states = frozenset({CommandState.PENDING})
                    withdraw(tx, cause, policy_only=True, states=states)
            except NotFoundError:  # deleted meanwhile
                continue

    def _notify(self) -> None:
        self._uow.feed.notify(Change(run_id=None, decisions=True))

    def silences(self) -> list[Silence]:
        """Return the silences that have not ended, oldest first."""
        with self._uow.reading() as repos:
            return _in_force(repos, self._uow.clock.now())

    def add_silence(self, silence: SilenceCreate, actor: str) -> Silence:
        """Exclude a rule from decisions.

        Raises:
            NotFoundError: There is no such run.
            InvalidInputError: Its end is in the past.
        """
        with self._uow.writing() as repos:
            now = self._uow.clock.now()
            if silence.run_id is not None:
                repos.runs.require(silence.run_id)
            row = SilenceRow(
                id=uuid.uuid4().hex, actor=actor, created_at=now, **silence.model_dump()
            )
            if not _is_in_force(repos, row, now):
                name = "until" if silence.until is not None else "until_step"
                raise InvalidInputError(
                    f"{name} is in the past; allowed: an end in the future",
                    field=name,
                    value=str(getattr(silence, name)),
                    allowed="an end in the future",
                )
            repos.control.add_silence(row)
            event = _silence_event(AuditAction.SILENCE_CREATED, row, actor, silence.reason)
            audit(repos, now, silence.run_id, event)
        self._notify()
        return to_silence(row)

    def remove_silence(self, silence_id: str, note: Note, actor: str) -> None:
        """Remove a silence.

        Raises:
            NotFoundError: There is no such silence.
        """
        with self._uow.writing() as repos:
            row = repos.control.require_silence(silence_id)
            event = _silence_event(AuditAction.SILENCE_REMOVED, row, actor, note.reason)
            audit(repos, self._uow.clock.now(), row.run_id, event)
            repos.control.remove_silence(row)
        self._notify()


def _in_force(repos: Repositories, now: datetime) -> list[Silence]:
    rows = repos.control.silences()
    return [to_silence(row) for row in rows if _is_in_force(repos, row, now)]


def _is_in_force(repos: Repositories, row: SilenceRow, now: datetime) -> bool:
    if row.until is not None and row.until <= now:
        return False
    if row.until_step is None or row.run_id is None:
        return True
    return repos.runs.require(row.run_id).step <= row.until_step


def _silence_event(action: AuditAction, row: SilenceRow, actor: str, message: str) -> AuditEvent:
    shown = to_silence(row).model_dump(mode="json")
    created = action is AuditAction.SILENCE_CREATED
    return AuditEvent(
        actor=actor,
        action=action,
        reason=AuditReason.REQUESTED_BY_PERSON,
        subject=row.id,
        message=message,
        before=None if created else shown,
        after=shown if created else None,
    )
