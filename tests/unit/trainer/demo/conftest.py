"""Full protocol objects; a test overrides what it is about."""

from datetime import UTC, datetime

import pytest

from stabilizer.protocol.commands import (
    Command,
    CommandResult,
    CommandState,
    ReadBack,
    ReduceLrParameters,
    RollbackParameters,
    SnapshotTarget,
)
from stabilizer.protocol.decisions import (
    Alert,
    AlertState,
    Decision,
    DecisionKind,
    DecisionReason,
    Incident,
    IncidentState,
    Severity,
)
from stabilizer.protocol.queries import SeriesData
from stabilizer.protocol.runs import Attempt

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Make:
    """Factories of what the collector would answer."""

    @staticmethod
    def alert(**changes):
        return Alert(
            **{
                "id": "a1",
                "run_id": "r",
                "attempt": 1,
                "rule": "loss_spike",
                "rule_hash": "h",
                "severity": Severity.NOTICE,
                "series": "loss",
                "state": AlertState.FIRING,
                "pending_step": 150,
                "firing_step": 151,
                "score": 9.0,
                "threshold": 6.0,
                **changes,
            }
        )

    @staticmethod
    def decision(kind=DecisionKind.WAIT, reason=DecisionReason.MAY_RECOVER, step=151):
        return Decision(step=step, attempt=1, kind=kind, reason=reason)

    @staticmethod
    def incident(*decisions, **changes):
        last = decisions[-1] if decisions else Make.decision()
        return Incident(
            **{
                "id": "i1",
                "run_id": "r",
                "number": 1,
                "state": IncidentState.RESOLVED,
                "attempt": 1,
                "first_step": 150,
                "opened_step": 151,
                "severity": Severity.NOTICE,
                "rules": ("loss_spike",),
                "decision": last.kind,
                "reason": last.reason,
                "decisions": decisions,
                "opened_at": NOON,
                **changes,
            }
        )

    @staticmethod
    def rollback(target=250, applied_step=300, **changes):
        parameters = RollbackParameters(
            target=SnapshotTarget(snapshot_id="s", attempt=1, step=target), skip_steps=80
        )
        return Make.command(parameters, applied_step, **changes)

    @staticmethod
    def cut(applied_step=290, **changes):
        return Make.command(ReduceLrParameters(factor=0.5), applied_step, **changes)

    @staticmethod
    def command(parameters, applied_step, **changes):
        result = CommandResult(
            command_id="c",
            state=CommandState.APPLIED,
            applied_step=applied_step,
            read_back=ReadBack(attempt=2, step=250, lr={"0": 1e-3}, lr_scale=1.0),
        )
        return Command(
            **{
                "id": "c",
                "run_id": "r",
                "attempt": 1,
                "parameters": parameters,
                "state": CommandState.APPLIED,
                "reason": "divergence",
                "incident_id": "i1",
                "issued_step": applied_step - 1,
                "issued_at": NOON,
                "expires_at": NOON,
                "result": result,
                **changes,
            }
        )

    @staticmethod
    def attempt(number, from_step):
        return Attempt(
            number=number,
            from_step=from_step,
            last_step=0,
            parent=number - 1 or None,
            reason="rollback",
            command_id=None,
            skipped_samples=0,
            started_at=NOON,
        )

    @staticmethod
    def series(attempt, steps, values):
        return SeriesData(
            series="loss",
            attempt=attempt,
            steps=tuple(steps),
            times=tuple(map(float, steps)),
            values=tuple(values),
            num_samples=len(steps),
            num_nonfinite=0,
        )


@pytest.fixture
def make():
    return Make
