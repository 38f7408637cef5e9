"""Record outcomes of the rules: alerts, incidents, decisions and commands."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from datetime import timedelta

from stabilizer.collector.services.commands.lifecycle import (
    UNDELIVERED,
    Cause,
    CommandDraft,
    move_command,
    write_command,
)
from stabilizer.collector.services.unit_of_work import POLICY, AuditEvent, RunTransaction
from stabilizer.collector.storage.models import AlertRow, DecisionRow, IncidentRow
from stabilizer.protocol.commands import CommandState, RejectReason
from stabilizer.protocol.decisions import (
    AlertState,
    DecisionKind,
    DecisionReason,
    IncidentState,
)
from stabilizer.protocol.queries import AuditAction
from stabilizer.rules.outcome import (
    AlertChange,
    AlertKey,
    CommandIntent,
    DecisionRecord,
    IncidentChange,
    Outcome,
)


@dataclass(frozen=True, slots=True)
class Origin:
    """The brain that decided. Each brain counts from one; a run may have had several."""

    generation: int
    incident_offset: int
    rules_hash: str

    def alert_key(self, key: AlertKey) -> str:
        """Return the key of an alert: 32 hexadecimal digits, since a series may be long."""
        text = "\x1f".join(map(str, (self.generation, *key)))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def command_key(self, key: str) -> str:
        """Return the key of a command of the policy."""
        return f"{self.generation}:{key}"


class Recorder:
    """Writes outcomes in the transaction of the batch that caused them.

    Args:
        command_lifetime: Time until an undelivered command expires.
    """

    def __init__(self, command_lifetime: timedelta) -> None:
        self._lifetime = command_lifetime

    def record(self, tx: RunTransaction, origin: Origin, outcome: Outcome) -> None:
        """Write an outcome. Referenced rows come before those that refer to them."""
        for alert in outcome.alerts:
            self._alert(tx, origin, alert)
        incidents = [self._incident(tx, origin, change) for change in outcome.incidents]
        for intent in outcome.commands:
            self._command(tx, origin, intent)
        for change, row in zip(outcome.incidents, incidents, strict=True):
            if change.decision is not None:
                self._decision(tx, origin, row, change.decision)
        for key in outcome.cancellations:
            self._cancel(tx, origin, key)
        tx.wakes_job = tx.wakes_job or bool(outcome)

    def _alert(self, tx: RunTransaction, origin: Origin, change: AlertChange) -> None:
        key = origin.alert_key(change.key)
        row = tx.repos.alerts.find(tx.run.id, key)
        if row is None:
            row = AlertRow(
                id=uuid.uuid4().hex,
                run_id=tx.run.id,
                key=key,
                attempt=change.key.attempt,
                rule=change.key.rule,
                rule_hash=origin.rules_hash,
                series=change.key.series,
                pending_step=change.key.pending_step,
                incident_id=None,
            )
        row.severity = change.severity.value
        row.state = change.state.value
        row.firing_step = change.firing_step
        row.resolved_step = change.resolved_step
        if change.state is not AlertState.RESOLVED or row.value is None:
            # Keep the sample that fired the alert, not the one that resolved it.
            row.value = change.value
            row.score = change.score
            row.threshold = change.threshold
        row.message = change.message
        tx.repos.alerts.add(row)

    def _incident(self, tx: RunTransaction, origin: Origin, change: IncidentChange) -> IncidentRow:
        number = origin.incident_offset + change.number
        row = tx.repos.incidents.find(tx.run.id, number)
        before = None if row is None else {"state": row.state, "severity": row.severity}
        if row is None:
            row = IncidentRow(
                id=uuid.uuid4().hex,
                run_id=tx.run.id,
                number=number,
                decision=DecisionKind.WAIT.value,
                reason=DecisionReason.MAY_RECOVER.value,
                message="",
                opened_at=tx.now,
                resolved_at=None,
            )
        _fill(row, change, tx)
        tx.repos.incidents.add(row)
        self._join_alerts(tx, origin, row, change)
        self._audit_incident(tx, row, change, before)
        return row

    def _join_alerts(
        self, tx: RunTransaction, origin: Origin, row: IncidentRow, change: IncidentChange
    ) -> None:
        for key in change.alerts:
            alert = tx.repos.alerts.find(tx.run.id, origin.alert_key(key))
            if alert is not None:
                alert.incident_id = row.id

    def _audit_incident(
        self,
        tx: RunTransaction,
        row: IncidentRow,
        change: IncidentChange,
        before: dict[str, str] | None,
    ) -> None:
        after = {"state": row.state, "severity": row.severity}
        if before == after:
            return
        tx.audit(
            AuditEvent(
                actor=POLICY,
                action=AuditAction.INCIDENT_CHANGED,
                reason=DecisionReason(row.reason),
                subject=row.id,
                message=row.message,
                before=before,
                after={**after, "rules": list(change.rules)},
            )
        )

    def _decision(
        self, tx: RunTransaction, origin: Origin, row: IncidentRow, decision: DecisionRecord
    ) -> None:
        command_id = None
        if decision.command_key is not None:
            command = tx.repos.commands.find(tx.run.id, origin.command_key(decision.command_key))
            command_id = None if command is None else command.id
        tx.repos.incidents.add_decision(
            DecisionRow(
                incident_id=row.id,
                position=tx.repos.incidents.num_decisions(row.id),
                step=decision.step,
                attempt=decision.attempt,
                kind=decision.kind.value,
                reason=decision.reason.value,
                message=decision.message,
                rung=decision.rung,
                deadline_step=decision.deadline_step,
                command_id=command_id,
            )
        )
        tx.audit(
            AuditEvent(
                actor=POLICY,
                action=AuditAction.DECISION_MADE,
                reason=decision.reason,
                subject=row.id,
                message=decision.message,
                after={
                    "kind": decision.kind.value,
                    "step": decision.step,
                    "attempt": decision.attempt,
                    "rung": decision.rung,
                    "deadline_step": decision.deadline_step,
                    "command_id": command_id,
                },
            )
        )

    def _command(self, tx: RunTransaction, origin: Origin, intent: CommandIntent) -> None:
        key = origin.command_key(intent.key)
        if tx.repos.commands.find(tx.run.id, key) is not None:
            return
        incident = tx.repos.incidents.find(tx.run.id, origin.incident_offset + intent.incident)
        draft = CommandDraft(
            parameters=intent.parameters,
            state=CommandState.PROPOSED if intent.proposed else CommandState.PENDING,
            reason=intent.reason,
            message=intent.message,
            actor=POLICY,
            lifetime=self._lifetime,
            key=key,
            attempt=intent.attempt,
            issued_step=intent.issued_step,
            incident_id=None if incident is None else incident.id,
        )
        write_command(tx, draft)

    def _cancel(self, tx: RunTransaction, origin: Origin, key: str) -> None:
        row = tx.repos.commands.find(tx.run.id, origin.command_key(key))
        # A delivered command cannot be cancelled: the job will report its result.
        if row is not None and row.state in UNDELIVERED:
            cause = Cause(
                actor=POLICY,
                reason=RejectReason.SUPERSEDED,
                message="superseded by a later decision of the policy",
            )
            move_command(tx, row, CommandState.CANCELLED, cause)


def _fill(row: IncidentRow, change: IncidentChange, tx: RunTransaction) -> None:
    row.state = change.state.value
    row.attempt = change.attempt
    row.first_step = change.first_step
    row.opened_step = change.opened_step
    row.resolved_step = change.resolved_step
    row.severity = change.severity.value
    row.rules = list(change.rules)
    row.rung = change.rung
    row.helped = change.helped
    if change.state is IncidentState.RESOLVED and row.resolved_at is None:
        row.resolved_at = tx.now
    if change.decision is not None:
        row.decision = change.decision.kind.value
        row.reason = change.decision.reason.value
        row.message = change.decision.message
