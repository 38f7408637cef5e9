"""Messages that figures are made of."""

import math
from datetime import UTC, datetime, timedelta

import plotly.graph_objects as go
import pytest

from stabilizer.protocol.batches import MarkerKind
from stabilizer.protocol.commands import (
    Command,
    CommandKind,
    CommandResult,
    CommandState,
    ReduceLrParameters,
    RollbackParameters,
    SnapshotTarget,
)
from stabilizer.protocol.decisions import (
    Decision,
    DecisionKind,
    DecisionReason,
    Incident,
    IncidentState,
    Severity,
)
from stabilizer.protocol.queries import SeriesData
from stabilizer.protocol.runs import Attempt
from stabilizer.protocol.views import MarkerInfo

START = datetime(2026, 1, 1, tzinfo=UTC)


class Make:
    """Builds complete messages from the fields of interest."""

    @staticmethod
    def attempt(number=1, from_step=0, last_step=100, parent=None):
        return Attempt(
            number=number,
            from_step=from_step,
            last_step=last_step,
            parent=parent,
            reason="rollback",
            command_id=None,
            skipped_samples=0,
            started_at=START,
        )

    @staticmethod
    def data(steps, values, series="loss", attempt=1):
        return SeriesData(
            series=series,
            attempt=attempt,
            steps=tuple(steps),
            times=tuple(float(step) for step in steps),
            values=tuple(float(value) for value in values),
            num_samples=len(steps),
            num_nonfinite=sum(not math.isfinite(value) for value in values),
        )

    @staticmethod
    def incident(**given):
        return Incident(
            **{
                "id": "i1",
                "run_id": "r",
                "number": 1,
                "state": IncidentState.OPEN,
                "attempt": 1,
                "first_step": 40,
                "opened_step": 45,
                "severity": Severity.DIVERGENCE,
                "rules": ("loss_diverging",),
                "decision": DecisionKind.WAIT,
                "reason": DecisionReason.MAY_RECOVER,
                "opened_at": START,
                **given,
            }
        )

    @staticmethod
    def decision(step):
        return Decision(
            step=step, attempt=1, kind=DecisionKind.ACT, reason=DecisionReason.DIVERGENCE
        )

    @staticmethod
    def command(number=1, parameters=None, state=CommandState.APPLIED, step=50, **given):
        result = None
        if state in {CommandState.APPLIED, CommandState.REJECTED, CommandState.EXPIRED}:
            applied = step if state is CommandState.APPLIED else None
            result = CommandResult(
                command_id=f"c{number}",
                state=state,
                applied_step=applied,
                reason=given.pop("why_not", None),
            )
        return Command(
            **{
                "id": f"c{number}",
                "run_id": "r",
                "attempt": 1,
                "parameters": parameters or ReduceLrParameters(factor=0.5),
                "state": state,
                "reason": DecisionReason.DIVERGENCE,
                "issued_step": step - 2,
                "issued_at": START + timedelta(seconds=number),
                "expires_at": START + timedelta(hours=1),
                "result": result,
                **given,
            }
        )

    @staticmethod
    def rollback(to, skip=0):
        target = SnapshotTarget(snapshot_id="s", attempt=1, step=to)
        return RollbackParameters(kind=CommandKind.ROLLBACK, target=target, skip_steps=skip)

    @staticmethod
    def marker(step=10, kind=MarkerKind.PHASE_CHANGE, text=""):
        return MarkerInfo(attempt=1, step=step, kind=kind, text=text, at=START)


@pytest.fixture
def make():
    return Make


@pytest.fixture
def valid():
    """Check that plotly takes a figure, and that JSON does."""

    def check(figure):
        return go.Figure(figure)

    return check
