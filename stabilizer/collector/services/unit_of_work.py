"""Transactions of the services: reads, and writes on one locked run with their notification."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from stabilizer.clock import Clock
from stabilizer.collector.services.change_feed import Change, ChangeFeed
from stabilizer.collector.storage.engine import Database
from stabilizer.collector.storage.models import AuditRow, CommandRow, RunRow
from stabilizer.collector.storage.repositories import Repositories
from stabilizer.protocol.commands import RejectReason
from stabilizer.protocol.decisions import DecisionReason
from stabilizer.protocol.queries import AuditAction, AuditReason

if TYPE_CHECKING:
    from stabilizer.collector.services.evaluation.judge import Judge  # works on transactions

POLICY = "policy"
JOB = "job"
COLLECTOR = "collector"
Reason = DecisionReason | RejectReason | AuditReason


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One entry of the audit log before it is written."""

    actor: str
    action: AuditAction
    reason: Reason
    subject: str
    message: str = ""
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


def audit(repos: Repositories, now: datetime, run_id: str | None, event: AuditEvent) -> None:
    """Write an event to the audit log, in the transaction that causes it."""
    repos.audit.add(
        AuditRow(
            at=now,
            run_id=run_id,
            actor=event.actor,
            action=event.action.value,
            subject=event.subject,
            reason=event.reason.value,
            message=event.message,
            before=event.before,
            after=event.after,
        )
    )


@dataclass(slots=True)
class RunTransaction:
    """A run that is locked for writing, in an open transaction."""

    repos: Repositories
    run: RunRow
    now: datetime
    judge: Judge
    """The rules, which evaluate what the transaction changes."""
    wakes_job: bool = False
    """Something changed that concerns a waiting job or an open page."""
    is_visible: bool = False
    """Something changed that concerns pages only."""
    has_frames: bool = False
    """Samples were stored."""
    changed_commands: list[CommandRow] = field(default_factory=list)
    """Changed commands that the rules have not processed yet."""
    is_judged: bool = False
    """The rules in memory are ahead of the database until it commits."""

    def audit(self, event: AuditEvent) -> None:
        """Write an event of this run to the audit log."""
        audit(self.repos, self.now, self.run.id, event)
        self.wakes_job = True


class UnitOfWork:
    """Opens transactions for all services. Thread-safe; one write per run at a time.

    Memory never runs ahead of the database: if a transaction fails after the rules have advanced,
    they are dropped from memory and rebuilt from the database at the next write.

    Args:
        database: Opens sessions.
        clock: Source of time.
        feed: Is notified of every committed change.
        judge: The rules of all runs; makes the last writes of every transaction on a run.
    """

    def __init__(self, database: Database, clock: Clock, feed: ChangeFeed, judge: Judge) -> None:
        self.database = database
        self.clock = clock
        self.feed = feed
        self.judge = judge
        self._locks: dict[str, threading.RLock] = {}
        self._guard = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[Repositories]:
        """Read a consistent snapshot of the database; takes no lock."""
        with self.database.reading() as session:
            yield Repositories(session)

    @contextmanager
    def writing(self) -> Iterator[Repositories]:
        """Write without a run."""
        with self.database.transaction() as session:
            yield Repositories(session)

    @contextmanager
    def run(self, run_id: str) -> Iterator[RunTransaction]:
        """Lock a run and write on it; all or nothing.

        Raises:
            NotFoundError: There is no such run.
            StorageError: The database refused the write.
        """
        with self.locked(run_id), self._transaction(lambda r: r.runs.lock(run_id)) as tx:
            yield tx
        self._notify(tx)

    @contextmanager
    def new_run(self, row: RunRow) -> Iterator[RunTransaction]:
        """Write on a run that this transaction creates. Rows that the run refers to must exist.

        Raises:
            StorageError: The database refused the write.
        """
        with self.locked(row.id), self._transaction(lambda _: row) as tx:
            yield tx
        self._notify(tx)

    @contextmanager
    def _transaction(self, find: Callable[[Repositories], RunRow]) -> Iterator[RunTransaction]:
        tx, run_id = None, ""
        try:
            with self.database.transaction() as session:
                repos = Repositories(session)
                tx = RunTransaction(repos, find(repos), self.clock.now(), self.judge)
                run_id = tx.run.id  # the row cannot be read after a rollback
                yield tx
                self.judge.before_commit(tx)
        except BaseException:
            if tx is not None and tx.is_judged:
                self.judge.forget(run_id)
            raise

    def _notify(self, tx: RunTransaction) -> None:
        if tx.wakes_job or tx.is_visible or tx.has_frames:
            self.feed.notify(
                Change(
                    run_id=tx.run.id,
                    frames=tx.has_frames,
                    decisions=tx.wakes_job or tx.is_visible,
                    wakes_job=tx.wakes_job,
                    step=tx.run.step,
                )
            )

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the lock of a run, or of a name while the run has no id yet."""
        with self._guard:
            lock = self._locks.setdefault(name, threading.RLock())
        with lock:
            yield
