"""Commands: issued manually, approved or rejected, delivered, and their results."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from stabilizer.collector.services.commands.answers import build_answer
from stabilizer.collector.services.commands.lifecycle import (
    Cause,
    CommandDraft,
    expire_due,
    move_command,
    write_command,
)
from stabilizer.collector.services.commands.targets import check_open, resolve
from stabilizer.collector.services.runs.attempts import is_newest, number_of
from stabilizer.collector.services.runs.presence import mark_alive
from stabilizer.collector.services.unit_of_work import (
    JOB,
    AuditEvent,
    Reason,
    RunTransaction,
    UnitOfWork,
)
from stabilizer.collector.storage.models import CommandRow
from stabilizer.collector.storage.repositories.decisions import to_command
from stabilizer.errors import ConflictError, NotFoundError
from stabilizer.protocol.batches import BatchAnswer, NamesAttempt
from stabilizer.protocol.commands import (
    Command,
    CommandResult,
    CommandState,
    RejectReason,
)
from stabilizer.protocol.decisions import DecisionReason
from stabilizer.protocol.queries import (
    AuditAction,
    AuditReason,
    CommandCreate,
    Note,
)


class CommandService:
    """Use cases around commands. Each call is one transaction.

    Args:
        uow: Opens transactions.
        lifetime: Time until an undelivered command expires; a command may set its own.
    """

    def __init__(self, uow: UnitOfWork, lifetime: timedelta) -> None:
        self._uow = uow
        self._lifetime = lifetime

    def create(self, run_id: str, command: CommandCreate, actor: str) -> Command:
        """Issue a command manually; it is pending at once, also while the policy is disarmed.

        Raises:
            NotFoundError: There is no such run.
            ConflictError: Codes `past_attempt`, `run_ended`, `unknown_snapshot`,
                `snapshot_not_finite`, `no_healthy_snapshot`.
        """
        with self._uow.run(run_id) as tx:
            check_open(tx.run, command.attempt)
            seconds = command.ttl_seconds
            draft = CommandDraft(
                parameters=resolve(tx.repos, tx.run, command.parameters),
                state=CommandState.PENDING,
                reason=DecisionReason.MANUAL,
                message=command.reason,
                actor=actor,
                lifetime=self._lifetime if seconds is None else timedelta(seconds=seconds),
                attempt=tx.run.attempt,
                issued_step=tx.run.step,
            )
            row = write_command(tx, draft)
            tx.judge.settle(tx)
            return to_command(row)

    def list(self, run_id: str, states: Collection[CommandState] = ()) -> list[Command]:
        """Return a run's commands, oldest first; no states: all.

        Raises:
            NotFoundError: There is no such run.
        """
        with self._uow.reading() as repos:
            repos.runs.require(run_id)
            return [to_command(row) for row in repos.commands.of_run(run_id, states)]

    def get(self, command_id: str) -> Command:
        """Return a command.

        Raises:
            NotFoundError: There is none.
        """
        with self._uow.reading() as repos:
            return to_command(repos.commands.require(command_id))

    def approve(self, command_id: str, note: Note, actor: str) -> Command:
        """Send a proposed command; its lifetime starts now.

        Raises:
            NotFoundError: There is no such command.
            ConflictError: It is not proposed any more; code `command_settled`.
        """
        reason = AuditReason.APPROVED_BY_PERSON
        return self._move(command_id, CommandState.PENDING, note, actor, reason)

    def reject(self, command_id: str, note: Note, actor: str) -> Command:
        """Refuse a proposed command.

        Raises:
            NotFoundError: There is no such command.
            ConflictError: It is not proposed any more; code `command_settled`.
        """
        reason = RejectReason.REFUSED_BY_PERSON
        return self._move(command_id, CommandState.REJECTED, note, actor, reason)

    def cancel(self, command_id: str, note: Note, actor: str) -> Command:
        """Cancel a command that has not been delivered.

        Raises:
            NotFoundError: There is no such command.
            ConflictError: The job has it, or it is settled; code `command_settled`.
        """
        reason = RejectReason.REFUSED_BY_PERSON
        return self._move(command_id, CommandState.CANCELLED, note, actor, reason)

    def _move(
        self, command_id: str, to: CommandState, note: Note, actor: str, reason: Reason
    ) -> Command:
        run_id = self.get(command_id).run_id
        with self._uow.run(run_id) as tx:
            row = tx.repos.commands.require(command_id)
            # A delivered or expired command may have been applied already: only the job's result
            # settles it, so operators approve and reject proposals only.
            if to is not CommandState.CANCELLED and row.state != CommandState.PROPOSED:
                verb = "approved" if to is CommandState.PENDING else "rejected"
                raise ConflictError(
                    f"command {command_id} is {row.state}; only a proposed one can be {verb}",
                    code="command_settled",
                )
            if row.expires_at <= tx.now and row.state == CommandState.PROPOSED:
                raise ConflictError(
                    f"command {command_id} expired at {row.expires_at.isoformat()}",
                    code="command_settled",
                )
            move_command(tx, row, to, Cause(actor=actor, reason=reason, message=note.reason))
            if to is CommandState.PENDING:
                row.expires_at = tx.now + self._lifetime
            tx.judge.settle(tx)
            return to_command(row)

    def poll(
        self, run_id: str, attempt: int | None = None, attempt_id: str | None = None
    ) -> BatchAnswer:
        """Return a job's commands; counts as a heartbeat, unless from an earlier attempt.

        Raises:
            NotFoundError: There is no such run.
        """
        with self._uow.run(run_id) as tx:
            number = number_of(tx, NamesAttempt(attempt=attempt, attempt_id=attempt_id))
            if is_newest(tx, number):
                mark_alive(tx)
            return build_answer(tx, number)

    def result(self, run_id: str, result: CommandResult) -> Command:
        """Record a job's result of a command; idempotent.

        A command that expired here and was applied there is applied: the job is authoritative.

        Raises:
            NotFoundError: The run has no such command.
            ConflictError: It is settled otherwise, or was never delivered; code `command_settled`.
        """
        with self._uow.run(run_id) as tx:
            row = tx.repos.commands.require(result.command_id)
            if row.run_id != run_id:
                raise NotFoundError(
                    f"run {run_id} has no command {result.command_id!r}", code="unknown_command"
                )
            mark_alive(tx)
            result = _numbered(tx, result)
            if row.result is not None:
                _check_same_result(row, result)
            else:
                _record_result(tx, row, result)
            tx.judge.settle(tx)
            return to_command(row)

    def expire_due(self) -> int:
        """Expire all commands whose time has passed, in every run; return how many."""
        with self._uow.reading() as repos:
            run_ids = repos.commands.runs_with_due(self._uow.clock.now())
        expired = 0
        for run_id in run_ids:
            try:
                with self._uow.run(run_id) as tx:
                    expired += expire_due(tx)
            except NotFoundError:  # deleted meanwhile
                continue
        return expired


def _numbered(tx: RunTransaction, result: CommandResult) -> CommandResult:
    """Set the number of the attempt that the job names by its id."""
    read_back = result.read_back
    if read_back is None or read_back.attempt_id is None:
        return result
    row = tx.repos.attempts.by_id(tx.run.id, read_back.attempt_id)
    number = tx.run.attempt if row is None else row.number
    numbered = read_back.model_copy(update={"attempt": number})
    return result.model_copy(update={"read_back": numbered})


def _check_same_result(row: CommandRow, result: CommandResult) -> None:
    # Compared as text, since NaN in a read-back is not equal to itself.
    stored = CommandResult.model_validate(row.result)
    if stored.model_dump_json() != result.model_dump_json():
        raise ConflictError(
            f"command {row.id} is {row.state}; the job reported {stored.state.value} before",
            code="command_settled",
        )


def _record_result(tx: RunTransaction, row: CommandRow, result: CommandResult) -> None:
    before = CommandState(row.state)
    to = CommandState(result.state)
    row.result = result.model_dump(mode="json")
    cause = Cause(actor=JOB, reason=_reason_of(before, result), message=result.message)
    if before is to:  # expired by both clocks
        tx.audit(
            AuditEvent(
                actor=JOB,
                action=AuditAction.COMMAND_CHANGED,
                reason=cause.reason,
                subject=row.id,
                message=cause.message,
                before={"state": before.value},
                after={"state": to.value, "result": row.result},
            )
        )
        return
    move_command(tx, row, to, cause)


def _reason_of(before: CommandState, result: CommandResult) -> Reason:
    if result.state is CommandState.APPLIED:
        late = before is CommandState.EXPIRED
        return AuditReason.CARRIED_OUT_LATE if late else AuditReason.CARRIED_OUT
    if result.state is CommandState.EXPIRED:
        return RejectReason.EXPIRED
    return result.reason or AuditReason.FAILED_IN_JOB
