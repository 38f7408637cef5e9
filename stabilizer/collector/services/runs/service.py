"""Runs: registered, changed, kept alive, lost and deleted."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

from stabilizer.collector.services.change_feed import Change
from stabilizer.collector.services.commands.answers import build_answer
from stabilizer.collector.services.commands.lifecycle import Cause, withdraw
from stabilizer.collector.services.frames.validation import check_catalogs
from stabilizer.collector.services.runs.attempts import is_newest, number_of
from stabilizer.collector.services.runs.presence import (
    ENDED,
    LIVING,
    lose,
    mark_alive,
    report_state,
)
from stabilizer.collector.services.runs.registration import Registration
from stabilizer.collector.services.unit_of_work import AuditEvent, UnitOfWork, audit
from stabilizer.collector.storage.models import RunRow
from stabilizer.collector.storage.repositories.runs import to_run
from stabilizer.errors import ConflictError, InvalidInputError, NotFoundError
from stabilizer.protocol.batches import BatchAnswer
from stabilizer.protocol.commands import CommandState
from stabilizer.protocol.decisions import DecisionReason, Mode
from stabilizer.protocol.queries import AuditAction, AuditReason, RunPage, RunQuery
from stabilizer.protocol.runs import (
    CatalogsAdd,
    Heartbeat,
    Run,
    RunRegister,
    RunRegistered,
    RunState,
    RunUpdate,
    Tick,
)


class RunService:
    """Use cases around runs. Each call is one transaction.

    Args:
        uow: Opens transactions.
        lost_after_heartbeats: A run is lost after this many of its intervals without a report.
    """

    def __init__(self, uow: UnitOfWork, lost_after_heartbeats: float) -> None:
        self._uow = uow
        self._registration = Registration(uow, self._is_live)
        self._lost_after = lost_after_heartbeats
        self._since = uow.clock.now()

    def register(self, register: RunRegister) -> RunRegistered:
        """Open a run, or the next attempt of the run of this name and key.

        Raises:
            ProtocolVersionError: The job speaks a version that this collector does not.
            RuleFileError: Its rules are invalid; lists all errors.
            InvalidInputError: Its catalogs cannot be stored.
        """
        return self._registration.register(register)

    def get(self, run_id: str) -> Run:
        """Return a run with its attempts.

        Raises:
            NotFoundError: There is none.
        """
        with self._uow.reading() as repos:
            row = repos.runs.require(run_id)
            open_incident = repos.incidents.open_ids([run_id]).get(run_id)
            return to_run(row, repos.attempts.of_run(run_id), open_incident)

    def update(self, run_id: str, update: RunUpdate, actor: str) -> Run:
        """Change how far the policy may go. `observe` withdraws undelivered commands.

        Raises:
            NotFoundError: There is no such run.
        """
        with self._uow.run(run_id) as tx:
            before = tx.run.mode
            tx.run.mode = update.mode.value
            tx.audit(
                AuditEvent(
                    actor=actor,
                    action=AuditAction.RUN_MODE_CHANGED,
                    reason=AuditReason.REQUESTED_BY_PERSON,
                    subject=run_id,
                    message=update.reason,
                    before={"mode": before},
                    after={"mode": update.mode.value},
                )
            )
            if update.mode is Mode.OBSERVE:
                cause = Cause(actor=actor, reason=DecisionReason.MODE_OBSERVE)
                states = frozenset({CommandState.PENDING})
                withdraw(tx, cause, policy_only=True, states=states)
        return self.get(run_id)

    def add_catalogs(self, run_id: str, message: CatalogsAdd) -> tuple[str, ...]:
        """Store catalogs of a run; idempotent. Returns their ids, in the given order.

        Raises:
            NotFoundError: There is no such run.
            InvalidInputError: They cannot be stored.
        """
        with self._uow.run(run_id) as tx:
            mark_alive(tx)
            known = tx.repos.catalogs.of_run(run_id)
            new = [catalog for catalog in message.catalogs if catalog.id not in known]
            check_catalogs(new, len(known))
            if new:
                tx.repos.catalogs.add(run_id, new, tx.now)
                tx.judge.add_catalogs(tx, new)
                tx.is_visible = True
        return tuple(catalog.id for catalog in message.catalogs)

    def heartbeat(self, run_id: str, heartbeat: Heartbeat) -> BatchAnswer:
        """Take a heartbeat or a change of state; one of an earlier attempt changes nothing.

        Raises:
            NotFoundError: There is no such run.
            InvalidInputError: The state is `lost`, which only the collector sets.
        """
        if heartbeat.state is RunState.LOST:
            raise InvalidInputError(
                "state is 'lost'; allowed: running, paused, finished, failed",
                field="state",
                value=heartbeat.state.value,
                allowed="running, paused, finished, failed",
            )
        with self._uow.run(run_id) as tx:
            number = number_of(tx, heartbeat)
            if is_newest(tx, number):
                mark_alive(tx)
                tx.is_visible = heartbeat.step > tx.run.step
                if tx.is_visible:
                    tx.run.stepped_at = tx.now
                tx.run.step = max(tx.run.step, heartbeat.step)
                report_state(tx, heartbeat.state, heartbeat.message)
                tx.judge.tick(tx, self._tick(tx.run))
            return build_answer(tx, number)

    def sweep_lost(self) -> list[str]:
        """Declare the runs lost that have been silent for too long; return their ids.

        The time in which this collector was not there to listen does not count.
        """
        with self._uow.reading() as repos:
            run_ids = repos.runs.ids(LIVING)
        return [run_id for run_id in run_ids if self._is_lost_now(run_id)]

    def _is_lost_now(self, run_id: str) -> bool:
        try:
            with self._uow.reading() as repos:
                row = repos.runs.require(run_id)
                if self._silent_seconds(row.last_seen_at) <= self._patience(row.heartbeat_seconds):
                    return False
            with self._uow.run(run_id) as tx:
                silent = self._silent_seconds(tx.run.last_seen_at)
                patience = self._patience(tx.run.heartbeat_seconds)
                if tx.run.state not in LIVING or silent <= patience:
                    return False  # reported in between
                lose(tx, silent)
        except NotFoundError:  # deleted in between
            return False
        return True

    def sweep_clocks(self) -> None:
        """Show the clock to the rules of all runs that look at it."""
        with self._uow.reading() as repos:
            run_ids = repos.runs.ids(LIVING | {RunState.LOST})
            run_ids = [run_id for run_id in run_ids if self._uow.judge.needs_ticks(repos, run_id)]
        for run_id in run_ids:
            with suppress(NotFoundError), self._uow.run(run_id) as tx:  # it may have been deleted
                if tx.run.state not in ENDED:
                    tx.judge.tick(tx, self._tick(tx.run))

    def _tick(self, run: RunRow) -> Tick:
        silent = max(0.0, self._silent_seconds(run.last_seen_at))
        stalled = max(0.0, self._silent_seconds(run.stepped_at or run.last_seen_at))
        is_paused = RunState.PAUSED in {run.state, run.state_before_lost}
        return Tick(run.step, silent=silent, stalled=0.0 if is_paused else stalled)

    def _is_live(self, row: RunRow) -> bool:
        silent = self._silent_seconds(row.last_seen_at)
        return row.state in LIVING and silent <= self._patience(row.heartbeat_seconds)

    def _silent_seconds(self, last_seen_at: datetime) -> float:
        listening_since = max(last_seen_at, self._since)
        return (self._uow.clock.now() - listening_since).total_seconds()

    def _patience(self, heartbeat_seconds: float) -> float:
        return self._lost_after * heartbeat_seconds

    def list(self, query: RunQuery) -> RunPage:
        """Return a page of runs, without their attempts.

        Raises:
            InvalidInputError: The cursor is invalid.
        """
        with self._uow.reading() as repos:
            rows, total, next_cursor = repos.runs.page(query)
            open_incidents = repos.incidents.open_ids([row.id for row in rows])
            runs = tuple(to_run(row, (), open_incidents.get(row.id)) for row in rows)
        return RunPage(runs=runs, total=total, next_cursor=next_cursor)

    def delete(self, run_id: str, actor: str, reason: str) -> None:
        """Delete a run with its frames and decisions; its audit rows stay.

        Raises:
            NotFoundError: There is no such run.
            ConflictError: Its job may still be alive; code `run_active`.
        """
        with self._uow.locked(run_id):
            with self._uow.writing() as repos:
                row = repos.runs.lock(run_id)
                if row.state in LIVING:
                    raise ConflictError(
                        f"run {run_id} is {row.state}; only one that has ended or is lost can go",
                        code="run_active",
                    )
                event = AuditEvent(
                    actor=actor,
                    action=AuditAction.RUN_DELETED,
                    reason=AuditReason.REQUESTED_BY_PERSON,
                    subject=run_id,
                    message=reason,
                    before={"name": row.name, "key": row.key, "state": row.state},
                )
                audit(repos, self._uow.clock.now(), run_id, event)
                repos.runs.delete(run_id)
            self._uow.judge.forget(run_id)
        # Wake the job of a deleted run: its poll now reports that the run is gone.
        change = Change(run_id=run_id, decisions=True, wakes_job=True, step=row.step)
        self._uow.feed.notify(change)
