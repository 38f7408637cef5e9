"""Whether a job lives, and what it says it is doing."""

from __future__ import annotations

import hashlib
import uuid
from typing import Final

from stabilizer.collector.services.commands.lifecycle import UNDELIVERED, Cause, withdraw
from stabilizer.collector.services.evaluation.judge import Judge
from stabilizer.collector.services.work import COLLECTOR, JOB, Deed, Reason, RunWork
from stabilizer.collector.storage.models import AlertRow
from stabilizer.protocol.commands import RejectReason
from stabilizer.protocol.decisions import AlertState, Severity
from stabilizer.protocol.queries import AuditAction, AuditReason
from stabilizer.protocol.runs import RunState

LIVING: Final = frozenset({RunState.RUNNING, RunState.PAUSED})
ENDED: Final = frozenset({RunState.FINISHED, RunState.FAILED})
LOST_RULE: Final = "no_sign_of_life"
"""The one alert that no rule file declares: its clock is the wall's."""


def heard(work: RunWork) -> None:
    """Note a sign of life; a run that was lost is what it was before."""
    work.run.last_seen_at = work.now
    if work.run.state != RunState.LOST:
        return
    before = RunState(work.run.state_before_lost or RunState.RUNNING)
    work.run.state_before_lost = None
    for alert in work.repos.alerts.unsettled(work.run.id):
        if alert.rule == LOST_RULE:
            alert.state = AlertState.RESOLVED.value
            alert.resolved_step = work.run.step
    _set_state(work, before, COLLECTOR, AuditReason.HEARD_AGAIN, "heard again")


def lose(work: RunWork, silent_seconds: float) -> None:
    """Declare a run lost and raise its alert."""
    work.run.state_before_lost = work.run.state
    message = f"no sign of life for {silent_seconds:.0f} s"
    key = f"{LOST_RULE}\x1f{work.run.last_seen_at.isoformat()}"
    work.repos.alerts.add(
        AlertRow(
            id=uuid.uuid4().hex,
            run_id=work.run.id,
            key=hashlib.blake2b(key.encode(), digest_size=16).hexdigest(),
            attempt=work.run.attempt,
            rule=LOST_RULE,
            rule_hash=work.run.rules_hash,
            severity=Severity.NOTICE.value,
            series="",
            state=AlertState.FIRING.value,
            pending_step=work.run.step,
            firing_step=work.run.step,
            resolved_step=None,
            value=silent_seconds,
            score=silent_seconds,
            threshold=None,
            message=message,
            incident_id=None,
        )
    )
    _set_state(work, RunState.LOST, COLLECTOR, AuditReason.NO_SIGN_OF_LIFE, message)


def report_state(work: RunWork, judge: Judge, state: RunState, message: str) -> None:
    """Take the job's word for what it is doing."""
    work.run.message = message or work.run.message
    if state == work.run.state:
        return
    _set_state(work, state, JOB, AuditReason.REPORTED_BY_JOB, message)
    if state in ENDED:
        judge.end_run(work)
        cause = Cause(actor=COLLECTOR, reason=RejectReason.RUN_ENDING, message="the run has ended")
        withdraw(work, cause, policy_only=False, states=UNDELIVERED)


def _set_state(work: RunWork, to: RunState, actor: str, reason: Reason, message: str) -> None:
    before = work.run.state
    work.run.state = to.value
    work.audit(
        Deed(
            actor=actor,
            action=AuditAction.RUN_STATE_CHANGED,
            reason=reason,
            subject=work.run.id,
            message=message,
            before={"state": before},
            after={"state": to.value},
        )
    )
