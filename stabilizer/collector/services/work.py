"""One write on one run: its lock, its transaction, and what follows when that has committed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from stabilizer.clock import Clock
from stabilizer.collector.services.changes import Change, Changes
from stabilizer.collector.storage.engine import Database
from stabilizer.collector.storage.models import AuditRow, CommandRow, RunRow
from stabilizer.collector.storage.repositories import Repositories
from stabilizer.protocol.commands import RejectReason
from stabilizer.protocol.decisions import DecisionReason
from stabilizer.protocol.queries import AuditAction, AuditReason

POLICY = "policy"
JOB = "job"
COLLECTOR = "collector"
Reason = DecisionReason | RejectReason | AuditReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """One thing that is done, as the audit log will tell it."""

    actor: str
    action: AuditAction
    reason: Reason
    subject: str
    message: str = ""
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


def audit(repos: Repositories, now: datetime, run_id: str | None, deed: Deed) -> None:
    """Write a deed into the audit log, in the transaction that does it."""
    repos.audit.add(
        AuditRow(
            at=now,
            run_id=run_id,
            actor=deed.actor,
            action=deed.action.value,
            subject=deed.subject,
            reason=deed.reason.value,
            message=deed.message,
            before=deed.before,
            after=deed.after,
        )
    )


@dataclass(slots=True)
class RunWork:
    """A run that is locked for writing, in an open transaction."""

    repos: Repositories
    run: RunRow
    now: datetime
    is_news: bool = False
    """Something that a waiting job or page wants to know has changed."""
    is_visible: bool = False
    """Something that pages show has changed, and that no job waits for."""
    has_frames: bool = False
    """Samples were stored."""
    changed_commands: list[CommandRow] = field(default_factory=list)
    """Commands whose change the rules have not been told yet."""
    is_judged: bool = False
    """The rules in memory have been changed and are ahead of the database until it commits."""

    def audit(self, deed: Deed) -> None:
        """Write a deed on this run into the audit log."""
        audit(self.repos, self.now, self.run.id, deed)
        self.is_news = True


class Conclusion(Protocol):
    """What must be done at the end of every write on a run: the rules' part."""

    def conclude(self, work: RunWork) -> None:
        """Finish within the transaction."""
        ...

    def forget(self, run_id: str) -> None:
        """Drop what memory holds of a run, since the transaction was rolled back."""
        ...


class Workbench:
    """Opens reads and writes for all services. Safe for many threads; one write per run at a time.

    Memory never runs ahead of the database: when anything was raised after the rules had moved,
    they are dropped from memory and built anew from the database at the next write.
    """

    def __init__(self, database: Database, clock: Clock, changes: Changes) -> None:
        self.database = database
        self.clock = clock
        self.changes = changes
        self._locks: dict[str, threading.RLock] = {}
        self._guard = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[Repositories]:
        """See one moment of the database."""
        with self.database.reading() as session:
            yield Repositories(session)

    @contextmanager
    def writing(self) -> Iterator[Repositories]:
        """Write what belongs to no run in particular."""
        with self.database.transaction() as session:
            yield Repositories(session)

    @contextmanager
    def run(self, run_id: str, conclusion: Conclusion) -> Iterator[RunWork]:
        """Write on a run; all or nothing.

        Raises:
            NotFoundError: There is no such run.
            StorageError: The database did not take it.
        """
        with self.locked(run_id), self._work(lambda r: r.runs.lock(run_id), conclusion) as work:
            yield work
        self._tell(work)

    @contextmanager
    def new_run(self, row: RunRow, conclusion: Conclusion) -> Iterator[RunWork]:
        """Write on a run that this transaction creates; what it refers to must be there first.

        Raises:
            StorageError: The database did not take it.
        """
        with self.locked(row.id), self._work(lambda _: row, conclusion) as work:
            yield work
        self._tell(work)

    @contextmanager
    def _work(
        self, find: Callable[[Repositories], RunRow], conclusion: Conclusion
    ) -> Iterator[RunWork]:
        work, run_id = None, ""
        try:
            with self.database.transaction() as session:
                repos = Repositories(session)
                work = RunWork(repos, find(repos), self.clock.now())
                run_id = work.run.id  # after a rollback the row can no longer be read
                yield work
                conclusion.conclude(work)
        except BaseException:
            if work is not None and work.is_judged:
                conclusion.forget(run_id)
            raise

    def _tell(self, work: RunWork) -> None:
        if work.is_news or work.is_visible or work.has_frames:
            self.changes.notify(
                Change(
                    run_id=work.run.id,
                    frames=work.has_frames,
                    decisions=work.is_news or work.is_visible,
                    wakes_job=work.is_news,
                    step=work.run.step,
                )
            )

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the lock of a run, or of a name for one that has no id yet."""
        with self._guard:
            lock = self._locks.setdefault(name, threading.RLock())
        with lock:
            yield
