"""State of a run: alive, lost, or as its job reports."""

from __future__ import annotations

import hashlib
import uuid
from typing import Final

from stabilizer.collector.services.commands.lifecycle import UNDELIVERED, Cause, withdraw
from stabilizer.collector.services.unit_of_work import (
    COLLECTOR,
    JOB,
    AuditEvent,
    Reason,
    RunTransaction,
)
from stabilizer.collector.storage.models import AlertRow
from stabilizer.protocol.commands import RejectReason
from stabilizer.protocol.decisions import AlertState, Severity
from stabilizer.protocol.queries import AuditAction, AuditReason
from stabilizer.protocol.runs import RunState

LIVING: Final = frozenset({RunState.RUNNING, RunState.PAUSED})
ENDED: Final = frozenset({RunState.FINISHED, RunState.FAILED})
LOST_RULE: Final = "no_sign_of_life"
"""The only alert that no rule file declares: it depends on wall time."""


def mark_alive(tx: RunTransaction) -> None:
    """Record that the job is alive; a lost run returns to its state before."""
    tx.run.last_seen_at = tx.now
    if tx.run.state != RunState.LOST:
        return
    before = RunState(tx.run.state_before_lost or RunState.RUNNING)
    tx.run.state_before_lost = None
    for alert in tx.repos.alerts.unsettled(tx.run.id):
        if alert.rule == LOST_RULE:
            alert.state = AlertState.RESOLVED.value
            alert.resolved_step = tx.run.step
    _set_state(tx, before, COLLECTOR, AuditReason.HEARD_AGAIN, "the job reports again")


def lose(tx: RunTransaction, silent_seconds: float) -> None:
    """Declare a run lost and raise its alert."""
    tx.run.state_before_lost = tx.run.state
    message = f"no report for {silent_seconds:.0f} s"
    key = f"{LOST_RULE}\x1f{tx.run.last_seen_at.isoformat()}"
    tx.repos.alerts.add(
        AlertRow(
            id=uuid.uuid4().hex,
            run_id=tx.run.id,
            key=hashlib.blake2b(key.encode(), digest_size=16).hexdigest(),
            attempt=tx.run.attempt,
            rule=LOST_RULE,
            rule_hash=tx.run.rules_hash,
            severity=Severity.NOTICE.value,
            series="",
            state=AlertState.FIRING.value,
            pending_step=tx.run.step,
            firing_step=tx.run.step,
            resolved_step=None,
            value=silent_seconds,
            score=silent_seconds,
            threshold=None,
            message=message,
            incident_id=None,
        )
    )
    _set_state(tx, RunState.LOST, COLLECTOR, AuditReason.NO_SIGN_OF_LIFE, message)


def report_state(tx: RunTransaction, state: RunState, message: str) -> None:
    """Set the state that the job reports."""
    tx.run.message = message or tx.run.message
    if state == tx.run.state:
        return
    _set_state(tx, state, JOB, AuditReason.REPORTED_BY_JOB, message)
    if state in ENDED:
        tx.judge.end_run(tx)
        cause = Cause(actor=COLLECTOR, reason=RejectReason.RUN_ENDING, message="the run has ended")
        withdraw(tx, cause, policy_only=False, states=UNDELIVERED)


def _set_state(tx: RunTransaction, to: RunState, actor: str, reason: Reason, message: str) -> None:
    before = tx.run.state
    tx.run.state = to.value
    tx.audit(
        AuditEvent(
            actor=actor,
            action=AuditAction.RUN_STATE_CHANGED,
            reason=reason,
            subject=tx.run.id,
            message=message,
            before={"state": before},
            after={"state": to.value},
        )
    )
