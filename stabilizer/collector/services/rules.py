"""Rule files of runs and of the collector: changed while jobs run, in versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from stabilizer.collector.services.change_feed import Change
from stabilizer.collector.services.evaluation.judge import default_rules, stored_rules
from stabilizer.collector.services.runs.presence import ENDED, LIVING
from stabilizer.collector.services.unit_of_work import (
    COLLECTOR,
    JOB,
    AuditEvent,
    UnitOfWork,
    audit,
)
from stabilizer.collector.storage.models import RuleVersionRow
from stabilizer.collector.storage.repositories import Repositories
from stabilizer.errors import ConflictError, NotFoundError
from stabilizer.protocol.queries import (
    AuditAction,
    AuditReason,
    RulesChange,
    RulesHistory,
    RulesUpdate,
    RulesVersion,
)
from stabilizer.protocol.runs import RunState
from stabilizer.rules.loader import RuleFile, load_rules
from stabilizer.rules.warnings import warnings_of

SHOWN: Final = 100
"""Versions in a history."""
_SUBJECT: Final = "rules"
_LOCK: Final = "rules of the collector"


class RulesService:
    """Versions of rule files. Each run changes over between two steps, in a transaction.

    Rules that a new version leaves as they are keep their state and their alerts. A version counts
    until the file that it was made from changes: that of the job, or the collector's `--rules`.
    """

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow

    def history(self, run_id: str | None) -> RulesHistory:
        """Return the versions of a run's rules; of the collector's without a run.

        Raises:
            NotFoundError: There is no such run.
        """
        with self._uow.reading() as repos:
            rows = repos.rules.versions(run_id, SHOWN)
            if rows:
                return RulesHistory(versions=tuple(_shown(repos, row) for row in rows))
            now = self._uow.clock.now()
            if run_id is None:
                rules, actor, at = self._uow.judge.default_rules, COLLECTOR, now
            else:
                run = repos.runs.require(run_id)
                rules = stored_rules(repos.rules.text(run.rules_hash), run.rules_hash)
                actor, at = JOB, run.created_at
        first = RulesVersion(
            number=1, hash=rules.hash, text=rules.text, actor=actor, reason="", created_at=at
        )
        return RulesHistory(versions=(first,))

    def update_run(self, run_id: str, update: RulesUpdate, actor: str) -> RulesChange:
        """Change the rules of one run.

        Raises:
            NotFoundError: There is no such run, or no such version.
            ConflictError: The run has ended; code `run_ended`.
            RuleFileError: The file is invalid; lists all errors.
        """
        given = _checked(update)
        with self._uow.run(run_id) as tx:
            if tx.run.state in ENDED:
                raise ConflictError(f"the run has {tx.run.state}", code="run_ended")
            before = stored_rules(tx.repos.rules.text(tx.run.rules_hash), tx.run.rules_hash)
            rules = given or _version(tx.repos, run_id, update.version, before)
            number = tx.repos.rules.last_version(run_id) or 1
            if not update.dry_run and rules.hash != before.hash:
                base = tx.run.brought_rules
                number = self._add(tx.repos, run_id, base, before, rules, (actor, update.reason))
                tx.judge.reload_rules(tx, rules, actor, update.reason)
            return _change(before, rules, number, update, num_runs=1)

    def update_default(self, update: RulesUpdate, actor: str) -> RulesChange:
        """Change the rules of the collector, and of all live runs that use them.

        Raises:
            NotFoundError: There is no such version.
            RuleFileError: The file is invalid; lists all errors.
        """
        given = _checked(update)
        file_rules = self._uow.judge.default_rules
        with self._uow.locked(_LOCK):
            with self._uow.writing() as repos:
                before = default_rules(repos, file_rules)
                rules = given or _version(repos, None, update.version, before)
                number = repos.rules.last_version(None) or 1
                is_new = not update.dry_run and rules.hash != before.hash
                if is_new:
                    who = (actor, update.reason)
                    number = self._add(repos, None, file_rules.hash, before, rules, who)
                    event = AuditEvent(
                        actor=actor,
                        action=AuditAction.RUN_RULES_CHANGED,
                        reason=AuditReason.REQUESTED_BY_PERSON,
                        subject=_SUBJECT,
                        message=update.reason,
                        before={"rules_hash": before.hash},
                        after={"rules_hash": rules.hash, "version": number},
                    )
                    audit(repos, self._uow.clock.now(), None, event)
                run_ids = repos.runs.ids(LIVING | {RunState.LOST})
                run_ids = [run_id for run_id in run_ids if _uses_default(repos, run_id)]
            for run_id in run_ids if is_new else ():
                self._pass_on(run_id, rules, actor, update.reason)
        self._uow.feed.notify(Change(run_id=None, decisions=True))
        return _change(before, rules, number, update, num_runs=len(run_ids))

    def _pass_on(self, run_id: str, rules: RuleFile, actor: str, reason: str) -> None:
        try:
            with self._uow.run(run_id) as tx:
                if tx.run.state not in ENDED and _uses_default(tx.repos, run_id):
                    tx.judge.reload_rules(tx, rules, actor, reason)
        except NotFoundError:  # deleted meanwhile
            return

    def _add(
        self,
        repos: Repositories,
        run_id: str | None,
        base: str,
        before: RuleFile,
        rules: RuleFile,
        who: tuple[str, str],
    ) -> int:
        """Store a version, and before the first one what was there; return its number."""
        now = self._uow.clock.now()
        last = repos.rules.last_version(run_id)
        origin = COLLECTOR if run_id is None else JOB
        added = [(1, before, (origin, ""))] if last is None else []
        added.append(((last or 1) + 1, rules, who))
        for number, file, (actor, reason) in added:
            repos.rules.add_set(file.hash, file.text, now)
            repos.rules.add_version(
                RuleVersionRow(
                    run_id=run_id,
                    number=number,
                    hash=file.hash,
                    base=base,
                    actor=actor,
                    reason=reason,
                    created_at=now,
                )
            )
        return added[-1][0]


def _checked(update: RulesUpdate) -> RuleFile | None:
    return None if update.text is None else load_rules(update.text, "rules")


def _version(
    repos: Repositories, run_id: str | None, number: int | None, current: RuleFile
) -> RuleFile:
    row = repos.rules.version(run_id, number or 0)
    if row is None and number == 1 and repos.rules.last_version(run_id) is None:
        return current
    if row is None:
        raise NotFoundError(f"there is no version {number} of these rules", code="unknown_version")
    return stored_rules(repos.rules.text(row.hash), row.hash)


def _uses_default(repos: Repositories, run_id: str) -> bool:
    """Return whether a run has neither rules of its job nor a version of its own."""
    run = repos.runs.get(run_id)
    if run is None or run.brought_rules:
        return False
    newest = repos.rules.newest_version(run_id)
    return newest is None or newest.base != run.brought_rules


def _shown(repos: Repositories, row: RuleVersionRow) -> RulesVersion:
    return RulesVersion(
        number=row.number,
        hash=row.hash,
        text=repos.rules.text(row.hash),
        actor=row.actor,
        reason=row.reason,
        created_at=row.created_at,
    )


def _change(
    before: RuleFile, after: RuleFile, number: int, update: RulesUpdate, num_runs: int
) -> RulesChange:
    old = {rule.name: rule for rule in before.rules}
    new = {rule.name: rule for rule in after.rules}
    shared: Sequence[str] = [name for name in new if name in old]
    return RulesChange(
        version=number,
        hash=after.hash,
        dry_run=update.dry_run,
        kept=tuple(name for name in shared if old[name] == new[name]),
        changed=tuple(name for name in shared if old[name] != new[name]),
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        warnings=tuple(warnings_of(after)),
        num_runs=num_runs,
    )
