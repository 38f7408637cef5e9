"""A job's first word: a new run, or a new attempt of one that is known."""

from __future__ import annotations

import uuid

from stabilizer.collector.services.commands.lifecycle import UNDELIVERED, Cause, withdraw
from stabilizer.collector.services.evaluation.judge import Judge
from stabilizer.collector.services.frames.validation import check_catalogs
from stabilizer.collector.services.runs.presence import heard
from stabilizer.collector.services.unit_of_work import (
    COLLECTOR,
    JOB,
    AuditEvent,
    RunTransaction,
    UnitOfWork,
)
from stabilizer.collector.storage.models import AttemptRow, RunRow
from stabilizer.errors import ProtocolVersionError, StorageError
from stabilizer.protocol.batches import AttemptStart, MarkerKind
from stabilizer.protocol.commands import RejectReason
from stabilizer.protocol.message import MIN_PROTOCOL_VERSION, PROTOCOL_VERSION
from stabilizer.protocol.queries import AuditAction, AuditReason
from stabilizer.protocol.runs import RunRegister, RunRegistered, RunState
from stabilizer.rules.loader import RuleFile, load_rules


class Registration:
    """Registers jobs. The same name and key come back to the same run, also from two threads."""

    def __init__(self, uow: UnitOfWork, judge: Judge) -> None:
        self._uow = uow
        self._judge = judge

    def register(self, register: RunRegister) -> RunRegistered:
        """Open a run or its next attempt.

        Raises:
            ProtocolVersionError: The job speaks a version that this collector does not.
            RuleFileError: The policy that it brings has mistakes.
            InvalidInputError: Its catalogs cannot be stored.
        """
        check_version(register.protocol_version)
        rules = self._rules_of(register)
        check_catalogs(register.catalogs, 0)
        with self._uow.locked(f"name {register.name}\x1f{register.key}"):
            run_id = self._find(register)
            if run_id is None:
                try:
                    return self._open(register, rules)
                except StorageError:
                    # On PostgreSQL another collector may have opened it at this moment.
                    run_id = self._find(register)
                    if run_id is None:
                        raise
            return self._come_back(run_id, register, rules)

    def _rules_of(self, register: RunRegister) -> RuleFile:
        if register.policy is None:
            return self._judge.default_rules
        return load_rules(register.policy, "policy")

    def _find(self, register: RunRegister) -> str | None:
        with self._uow.reading() as repos:
            row = repos.runs.find(register.name, register.key)
            return None if row is None else row.id

    def _open(self, register: RunRegister, rules: RuleFile) -> RunRegistered:
        row = self._new_row(register, rules)
        with self._uow.new_run(row) as tx:
            tx.repos.rules.add_set(rules.hash, rules.text, tx.now)
            tx.repos.runs.add(row)
            tx.repos.catalogs.add(row.id, register.catalogs, tx.now)
            self._judge.begin(tx, rules)
            _audit_registration(tx, register, before=None)
            start = AttemptStart(from_step=register.start_step)
            begin_attempt(tx, self._judge, 1, start)
            return self._registered(tx)

    def _new_row(self, register: RunRegister, rules: RuleFile) -> RunRow:
        now = self._uow.clock.now()
        return RunRow(
            id=uuid.uuid4().hex,
            name=register.name,
            key=register.key,
            state=RunState.RUNNING.value,
            state_before_lost=None,
            mode=(register.mode or rules.policy.mode).value,
            attempt=1,
            step=register.start_step,
            world_size=register.world_size,
            global_batch=register.global_batch,
            git_revision=register.git_revision,
            rules_hash=rules.hash,
            config=register.config,
            agent_health={},
            message="",
            heartbeat_seconds=register.heartbeat_seconds,
            version=0,
            created_at=now,
            last_seen_at=now,
        )

    def _come_back(self, run_id: str, register: RunRegister, rules: RuleFile) -> RunRegistered:
        with self._uow.run(run_id) as tx:
            heard(tx)
            before = {"state": tx.run.state, "mode": tx.run.mode}
            self._take_over(tx, register, rules)
            _audit_registration(tx, register, before)
            start = AttemptStart(
                from_step=register.start_step,
                parent=tx.run.attempt,
                reason=MarkerKind.RESUME,
            )
            begin_attempt(tx, self._judge, tx.run.attempt + 1, start)
            # The snapshots were in the memory of a process that is gone.
            tx.repos.attempts.replace_snapshots(run_id, ())
            self._judge.set_snapshots(tx, ())
            return self._registered(tx)

    def _take_over(self, tx: RunTransaction, register: RunRegister, rules: RuleFile) -> None:
        run = tx.run
        run.state = RunState.RUNNING.value
        # What a person has set stays, unless the job asks for a mode itself.
        run.mode = (register.mode.value) if register.mode is not None else run.mode
        run.world_size = register.world_size
        run.global_batch = register.global_batch
        run.git_revision = register.git_revision
        run.config = register.config
        run.heartbeat_seconds = register.heartbeat_seconds
        run.message = ""
        known = tx.repos.catalogs.of_run(run.id)
        new = [catalog for catalog in register.catalogs if catalog.id not in known]
        check_catalogs(new, len(known))
        tx.repos.catalogs.add(run.id, new, tx.now)
        self._judge.add_catalogs(tx, new)
        self._judge.change_rules(tx, rules)

    def _registered(self, tx: RunTransaction) -> RunRegistered:
        return RunRegistered.model_validate(
            {
                "run_id": tx.run.id,
                "attempt": tx.run.attempt,
                "plan": self._judge.plan(tx),
                "mode": tx.run.mode,
                "protocol_version": PROTOCOL_VERSION,
            }
        )


def begin_attempt(tx: RunTransaction, judge: Judge, number: int, start: AttemptStart) -> AttemptRow:
    """Make an attempt the run's newest. Commands for earlier ones that no job has are withdrawn."""
    row = add_attempt(tx, number, start)
    tx.run.attempt = number
    tx.run.step = start.from_step
    cause = Cause(
        actor=COLLECTOR,
        reason=RejectReason.PAST_ATTEMPT,
        message=f"attempt {number} has begun",
    )
    withdraw(tx, cause, policy_only=False, states=UNDELIVERED)
    judge.settle(tx)
    judge.begin_attempt(tx, row)
    return row


def add_attempt(tx: RunTransaction, number: int, start: AttemptStart) -> AttemptRow:
    """Store an attempt."""
    row = AttemptRow(
        run_id=tx.run.id,
        number=number,
        from_step=start.from_step,
        last_step=start.from_step,
        parent=start.parent,
        reason=start.reason.value,
        command_id=start.command_id,
        skipped_samples=start.skipped_samples,
        started_at=tx.now,
        accepted_sequence=-1,
        num_batches=0,
    )
    tx.repos.attempts.add(row)
    tx.audit(
        AuditEvent(
            actor=JOB,
            action=AuditAction.ATTEMPT_STARTED,
            reason=AuditReason.REPORTED_BY_JOB,
            subject=tx.run.id,
            message=f"attempt {number} from step {start.from_step}",
            after={"attempt": number, **start.model_dump(mode="json")},
        )
    )
    return row


def _audit_registration(
    tx: RunTransaction, register: RunRegister, before: dict[str, str] | None
) -> None:
    tx.audit(
        AuditEvent(
            actor=JOB,
            action=AuditAction.RUN_REGISTERED,
            reason=AuditReason.REGISTERED,
            subject=tx.run.id,
            message=register.name,
            before=before,
            after={
                "state": tx.run.state,
                "mode": tx.run.mode,
                "rules_hash": tx.run.rules_hash,
                "world_size": register.world_size,
                "git_revision": register.git_revision,
            },
        )
    )


def check_version(version: int) -> None:
    """Check that this collector understands what a job speaks.

    Raises:
        ProtocolVersionError: It does not.
    """
    if not MIN_PROTOCOL_VERSION <= version <= PROTOCOL_VERSION:
        raise ProtocolVersionError(
            f"the job speaks protocol version {version}; this collector speaks versions "
            f"{MIN_PROTOCOL_VERSION} to {PROTOCOL_VERSION}: "
            + ("upgrade the job" if version < MIN_PROTOCOL_VERSION else "upgrade the collector")
        )
