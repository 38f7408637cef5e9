"""The answer to every batch, heartbeat and poll of a job."""

from __future__ import annotations

from stabilizer.collector.services.commands.lifecycle import Cause, expire_due, move_command
from stabilizer.collector.services.runs.attempts import is_newest, minted_id
from stabilizer.collector.services.unit_of_work import COLLECTOR, RunTransaction
from stabilizer.collector.storage.models import CommandRow
from stabilizer.collector.storage.repositories.decisions import to_command
from stabilizer.protocol.batches import BatchAnswer
from stabilizer.protocol.commands import Command, CommandState, RollbackParameters
from stabilizer.protocol.queries import AuditReason


def build_answer(tx: RunTransaction, attempt: int, *, duplicate: bool = False) -> BatchAnswer:
    """Build an answer and mark its commands as delivered.

    The transaction must commit before the answer is sent, so that every sent command is stored.
    Each answer holds all unsettled commands, so that a lost answer loses none. Earlier attempts
    receive none: a process that outlives the start of its successor would reject and so settle
    them.
    """
    expire_due(tx)
    tx.judge.settle(tx)
    cause = Cause(actor=COLLECTOR, reason=AuditReason.SENT_TO_JOB)
    unsettled = {CommandState.PENDING, CommandState.DELIVERED}
    rows = tx.repos.commands.of_run(tx.run.id, unsettled) if is_newest(tx, attempt) else []
    for row in rows:
        if row.state == CommandState.PENDING:
            move_command(tx, row, CommandState.DELIVERED, cause)
    tx.judge.settle(tx)
    stored = tx.repos.attempts.get(tx.run.id, attempt)
    return BatchAnswer(
        attempt=attempt,
        attempt_id=minted_id(stored),
        accepted_sequence=-1 if stored is None else stored.accepted_sequence,
        duplicate=duplicate,
        commands=tuple(_deliverable(tx, row) for row in rows),
        plan=tx.judge.plan(tx),
        healthy_snapshots=tx.judge.healthy_snapshots(tx),
        notice=tx.run.notice,
    )


def _deliverable(tx: RunTransaction, row: CommandRow) -> Command:
    """Name attempts as the job does."""

    def name(number: int) -> dict[str, str | None]:
        return {"attempt_id": minted_id(tx.repos.attempts.get(tx.run.id, number))}

    command = to_command(row)
    parameters = command.parameters
    if isinstance(parameters, RollbackParameters):
        target = parameters.target
        target = target.model_copy(update=name(target.attempt))
        parameters = parameters.model_copy(update={"target": target})
    return command.model_copy(update={"parameters": parameters, **name(command.attempt)})
