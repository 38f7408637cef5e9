"""Registration: a new run, or a new attempt of one that is known."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from typing import Final

from stabilizer.collector.services.evaluation.judge import default_rules, rules_of_job
from stabilizer.collector.services.frames.validation import check_catalogs
from stabilizer.collector.services.runs.attempts import begin_attempt, derived_id
from stabilizer.collector.services.runs.presence import mark_alive
from stabilizer.collector.services.unit_of_work import (
    JOB,
    AuditEvent,
    RunTransaction,
    UnitOfWork,
)
from stabilizer.collector.storage.models import RunRow
from stabilizer.collector.storage.repositories import Repositories
from stabilizer.errors import NotFoundError, ProtocolVersionError, StorageError
from stabilizer.protocol.batches import AttemptStart, MarkerKind
from stabilizer.protocol.message import MIN_PROTOCOL_VERSION, PROTOCOL_VERSION
from stabilizer.protocol.queries import AuditAction, AuditReason
from stabilizer.protocol.runs import Phase, RunRegister, RunRegistered, RunState
from stabilizer.rules.loader import RuleFile, load_rules

logger = logging.getLogger(__name__)

_TRIES: Final = 5
_HINT: Final = "give each job a key of its own to tell them apart"
_MAX_FOREIGN_KEYS: Final = 10
"""How many keys of our form users may have taken before a random one is used."""


class _ChangedError(Exception):
    """Another registration has changed what this one was chosen by."""


@dataclass(frozen=True, slots=True)
class _Choice:
    """What a registration becomes: the next attempt of a run, or a run of its own."""

    run_id: str | None
    namesake: str | None = None
    """A live run of the same name; its job is notified."""
    if_not_live: bool = False
    """Whether the choice holds only while no process of the run is live."""


class Registration:
    """Registers processes of jobs, each as a run of its own or as the restart of a known one.

    A restart is recognised, in this order, by:

    1. its attempt's id: the answer to the same registration was lost;
    2. an explicit key: the run of this name and key, even if its last process seems live;
    3. the checkpoint it resumes from: the run of this name that wrote it, if that run is not live,
       or if its last process wrote it under the same scheduler's id;
    4. the scheduler's id: the run of this name and id, if its restart count has risen or its last
       process is not live;
    5. the name alone: the last seen run of this name without a key, if no such run is live.

    Everything else is a run of its own: two live jobs without a key never share one, not even one
    that was started from the other's checkpoint. A job is live while its run is running or paused
    and its last heartbeat is within the time after which a run counts as lost. A second run of a
    name gets a key of the form `auto-2`, and both jobs get a notice for their logs.

    A job of protocol version 1 mints no id, and names no checkpoint and no scheduler: a restart
    cannot be told from a second job. It resumes the run of its name and key, live or not.

    Args:
        uow: Opens transactions.
        is_live: Returns whether a run's job is live.
    """

    def __init__(self, uow: UnitOfWork, is_live: Callable[[RunRow], bool]) -> None:
        self._uow = uow
        self._is_live = is_live

    def register(self, register: RunRegister) -> RunRegistered:
        """Open a run or its next attempt.

        Raises:
            ProtocolVersionError: The job speaks a version that this collector does not.
            RuleFileError: Its rules are invalid.
            InvalidInputError: Its catalogs cannot be stored.
        """
        check_version(register.protocol_version)
        brought = None if register.policy is None else load_rules(register.policy, "policy")
        check_catalogs(register.catalogs, 0)
        with self._uow.locked(f"name {register.name}"):
            for _ in range(_TRIES - 1):
                with suppress(_ChangedError):
                    return self._try(register, brought)
            return self._try(register, brought)

    def _try(self, register: RunRegister, brought: RuleFile | None) -> RunRegistered:
        with self._uow.reading() as repos:
            choice = self._choose(repos, register)
            key = register.key or _free_key(repos, register.name)
            rules = brought or default_rules(repos, self._uow.judge.default_rules)
            if choice.run_id is not None:
                rules = rules_of_job(repos, choice.run_id, brought) or rules
        if choice.run_id is not None:
            return self._resume(choice.run_id, register, rules, choice)
        row = self._new_row(register, rules, key)
        if choice.namesake is not None:
            row.notice = (
                f"a job named {row.name!r} is live as run {choice.namesake}; this job is run "
                f"{row.id} of its own, with key {key!r}; {_HINT}"
            )
            logger.warning("registration: %s", row.notice)
        try:
            answer = self._open(row, register, rules)
        except StorageError as error:
            # On PostgreSQL another collector may have registered a job at this moment.
            raise _ChangedError from error
        if choice.namesake is not None:
            self._notify_namesake(choice.namesake, answer.run_id, register.name, key)
        return answer

    def _choose(self, repos: Repositories, register: RunRegister) -> _Choice:
        if register.attempt_id is not None:
            run_id = repos.attempts.run_of(register.attempt_id)
            if run_id is not None:
                return _Choice(run_id)
        if register.key or register.attempt_id is None:
            row = repos.runs.find(register.name, register.key)
            return _Choice(None if row is None else row.id)
        keyless = repos.runs.keyless(register.name)
        writer = self._writer(repos, register)
        found = self._by_checkpoint(repos, register, writer) or self._by_scheduler(
            keyless, register
        )
        if found is not None:
            return found
        live = [row for row in (writer, *keyless) if row is not None and self._is_live(row)]
        if live or not keyless:
            return _Choice(None, namesake=live[0].id if live else None)
        return _Choice(keyless[0].id, if_not_live=True)

    def _writer(self, repos: Repositories, register: RunRegister) -> RunRow | None:
        """Return the run of this name that wrote the checkpoint."""
        resumes = register.resumes
        row = None if resumes is None or resumes.run_id is None else repos.runs.get(resumes.run_id)
        return row if row is not None and row.name == register.name else None

    def _by_checkpoint(
        self, repos: Repositories, register: RunRegister, row: RunRow | None
    ) -> _Choice | None:
        if row is None or register.resumes is None:
            return None
        if not self._is_live(row):
            return _Choice(row.id, if_not_live=True)
        written = repos.attempts.by_id(row.id, register.resumes.attempt_id)
        newest = repos.attempts.get(row.id, row.attempt)
        if written is None or newest is None or written.origin_id != newest.origin_id:
            return None
        return _Choice(row.id) if _is_same_job(row, register) else None

    def _by_scheduler(self, keyless: Sequence[RunRow], register: RunRegister) -> _Choice | None:
        job = register.scheduler
        if job is None:
            return None
        for row in (row for row in keyless if row.scheduler == job.id):
            if job.restarts > row.scheduler_restarts:
                return _Choice(row.id)
            if not self._is_live(row):
                return _Choice(row.id, if_not_live=True)
        return None

    def _open(self, row: RunRow, register: RunRegister, rules: RuleFile) -> RunRegistered:
        with self._uow.new_run(row) as tx:
            tx.repos.rules.add_set(rules.hash, rules.text, tx.now)
            tx.repos.runs.add(row)
            tx.repos.catalogs.add(row.id, register.catalogs, tx.now)
            tx.judge.begin(tx, rules)
            _audit_registration(tx, register, before=None)
            resumes = register.resumes
            parent_id = None if resumes is None else resumes.attempt_id
            start = AttemptStart(from_step=register.start_step, parent_id=parent_id)
            attempt_id = register.attempt_id or derived_id(row.id, 1)
            begin_attempt(tx, 1, attempt_id, start)
            return self._registered(tx, register)

    def _new_row(self, register: RunRegister, rules: RuleFile, key: str) -> RunRow:
        now = self._uow.clock.now()
        job = register.scheduler
        return RunRow(
            id=uuid.uuid4().hex,
            name=register.name,
            key=key,
            keyless=not register.key,
            scheduler="" if job is None else job.id,
            scheduler_restarts=0 if job is None else job.restarts,
            notice="",
            state=RunState.RUNNING.value,
            state_before_lost=None,
            mode=(register.mode or rules.policy.mode).value,
            attempt=1,
            step=register.start_step,
            world_size=register.world_size,
            global_batch=register.global_batch,
            git_revision=register.git_revision,
            rewind=register.rewind,
            rewind_reason=register.rewind_reason,
            rules_hash=rules.hash,
            brought_rules="" if register.policy is None else rules.hash,
            config=register.config,
            agent_health={},
            message="",
            heartbeat_seconds=register.heartbeat_seconds,
            phase=Phase.LEARNING.value,
            version=0,
            created_at=now,
            last_seen_at=now,
            stepped_at=now,
        )

    def _notify_namesake(self, run_id: str, new_run_id: str, name: str, key: str) -> None:
        with suppress(NotFoundError), self._uow.run(run_id) as tx:  # it may have been deleted
            tx.run.notice = (
                f"another live job has registered as {name!r}; it is run {new_run_id} of its own, "
                f"with key {key!r}; {_HINT}"
            )
            tx.wakes_job = True

    def _resume(
        self, run_id: str, register: RunRegister, rules: RuleFile, choice: _Choice
    ) -> RunRegistered:
        with self._uow.run(run_id) as tx:
            if register.attempt_id is not None:
                known = tx.repos.attempts.by_id(run_id, register.attempt_id)
                if known is not None:
                    if known.number == tx.run.attempt:
                        mark_alive(tx)
                    return self._registered(tx, register, known.number)
            if choice.if_not_live and self._is_live(tx.run):
                raise _ChangedError
            mark_alive(tx)
            before = {"state": tx.run.state, "mode": tx.run.mode}
            self._update_run(tx, register, rules)
            _audit_registration(tx, register, before)
            number = tx.repos.attempts.next_number(run_id)
            attempt_id = register.attempt_id or derived_id(run_id, number)
            begin_attempt(tx, number, attempt_id, _start_of(tx, register))
            # The snapshots were in the memory of the process that ended.
            tx.repos.attempts.replace_snapshots(run_id, ())
            tx.judge.set_snapshots(tx, ())
            return self._registered(tx, register)

    def _update_run(self, tx: RunTransaction, register: RunRegister, rules: RuleFile) -> None:
        run = tx.run
        run.state = RunState.RUNNING.value
        # Keep a mode that an operator has set, unless the job requests one.
        run.mode = (register.mode.value) if register.mode is not None else run.mode
        run.world_size = register.world_size
        run.global_batch = register.global_batch
        run.git_revision = register.git_revision
        run.rewind, run.rewind_reason = register.rewind, register.rewind_reason
        run.config = register.config
        run.heartbeat_seconds = register.heartbeat_seconds
        run.message = run.notice = ""
        job = register.scheduler
        run.scheduler = "" if job is None else job.id
        run.scheduler_restarts = 0 if job is None else job.restarts
        known = tx.repos.catalogs.of_run(run.id)
        new = [catalog for catalog in register.catalogs if catalog.id not in known]
        check_catalogs(new, len(known))
        tx.repos.catalogs.add(run.id, new, tx.now)
        tx.judge.add_catalogs(tx, new)
        brought = None if register.policy is None else load_rules(register.policy, "policy")
        run.brought_rules = "" if brought is None else brought.hash
        tx.judge.change_rules(tx, rules)

    def _registered(
        self, tx: RunTransaction, register: RunRegister, attempt: int | None = None
    ) -> RunRegistered:
        return RunRegistered.model_validate(
            {
                "run_id": tx.run.id,
                "attempt": attempt or tx.run.attempt,
                "plan": tx.judge.plan(tx),
                "mode": tx.run.mode,
                "protocol_version": register.protocol_version,
                "notice": tx.run.notice,
            }
        )


def _is_same_job(row: RunRow, register: RunRegister) -> bool:
    job = register.scheduler
    return job is not None and job.id == row.scheduler and job.restarts >= row.scheduler_restarts


def _start_of(tx: RunTransaction, register: RunRegister) -> AttemptStart:
    """Continue from the attempt of the checkpoint; without one from the newest."""
    if register.resumes is not None:
        parent, parent_id = None, register.resumes.attempt_id
    else:
        parent, parent_id = tx.run.attempt, None
    return AttemptStart(
        from_step=register.start_step,
        parent=parent,
        parent_id=parent_id,
        reason=MarkerKind.RESUME,
    )


def _free_key(repos: Repositories, name: str) -> str:
    """Return a key for a job that gave none: empty unless another run has that."""
    taken = {row.key for row in repos.runs.keyless(name)}
    numbered = (f"auto-{number}" for number in count(2))
    keys = ("", *islice(numbered, len(taken) + _MAX_FOREIGN_KEYS))
    free = (key for key in keys if key not in taken and repos.runs.find(name, key) is None)
    return next(free, f"auto-{uuid.uuid4().hex[:8]}")


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
    """Check that this collector supports the protocol version of a job.

    Raises:
        ProtocolVersionError: The version is not supported.
    """
    if not MIN_PROTOCOL_VERSION <= version <= PROTOCOL_VERSION:
        raise ProtocolVersionError(
            f"the job speaks protocol version {version}; this collector speaks versions "
            f"{MIN_PROTOCOL_VERSION} to {PROTOCOL_VERSION}: "
            + ("upgrade the job" if version < MIN_PROTOCOL_VERSION else "upgrade the collector")
        )
