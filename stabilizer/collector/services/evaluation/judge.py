"""Evaluate the rules of runs on every event, and record their decisions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial

from stabilizer.collector.services.evaluation.recorder import Origin, Recorder
from stabilizer.collector.services.evaluation.stored_brain import (
    SAVE_EVERY_STEPS,
    BrainCache,
    CatalogCache,
    RunContext,
    StoredBrain,
    fresh_brain,
    restore_brain,
    save_brain,
    saved_state,
)
from stabilizer.collector.services.unit_of_work import COLLECTOR, AuditEvent, RunTransaction
from stabilizer.collector.storage.models import AttemptRow, BrainStateRow, TickRow
from stabilizer.collector.storage.repositories import Repositories
from stabilizer.collector.storage.repositories.decisions import to_command
from stabilizer.errors import ConfigurationError, RuleFileError
from stabilizer.protocol.batches import Marker, MarkerKind, SamplingPlan, SnapshotInfo
from stabilizer.protocol.decisions import AlertState, IncidentState
from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.queries import AuditAction, AuditReason
from stabilizer.protocol.runs import Tick
from stabilizer.protocol.series import Catalog
from stabilizer.rules.brain import Brain
from stabilizer.rules.loader import RuleFile, load_rules
from stabilizer.rules.outcome import Outcome

logger = logging.getLogger(__name__)


class Judge:
    """The rules of all runs. Call it under the run's lock, in its transaction.

    Args:
        recorder: Writes outcomes.
        default_rules: The collector's rule file, for runs without rules of their own.
    """

    def __init__(self, recorder: Recorder, default_rules: RuleFile) -> None:
        self.default_rules = default_rules
        self._recorder = recorder
        self._brains = BrainCache()
        self._catalogs = CatalogCache()
        self._with_clock: dict[str, bool] = {}  # by hash of the rules

    def begin(self, tx: RunTransaction, rules: RuleFile) -> None:
        """Create the brain of a new run."""
        origin = Origin(1, 0, rules.hash)
        self._brains.put(tx.run.id, fresh_brain(tx, rules, origin, self._catalogs))

    def begin_attempt(self, tx: RunTransaction, attempt: AttemptRow) -> None:
        """Begin an attempt: its steps may repeat earlier ones."""
        loaded = self._touch(tx, save=True)
        loaded.seen.clear()
        reason = MarkerKind(attempt.reason)
        self._record(
            tx, loaded, loaded.brain.begin_attempt(attempt.number, attempt.from_step, reason)
        )

    def change_rules(self, tx: RunTransaction, rules: RuleFile) -> None:
        """Replace the rules of a run; what the old ones have open is closed."""
        old = self._touch(tx, save=True)
        if old.origin.rules_hash == rules.hash:
            return
        self._record(tx, old, old.brain.end_run(tx.run.step))
        self._succeed(tx, rules, old.origin.generation)

    def reload_rules(self, tx: RunTransaction, rules: RuleFile, actor: str, message: str) -> None:
        """Replace the rules of a live run; those that stay the same keep their state and alerts."""
        loaded = self._touch(tx, save=True)
        before = loaded.origin.rules_hash
        if before == rules.hash:
            return
        brain = Brain(rules)
        ended = brain.inherit(loaded.brain, tx.run.step)
        self._record(tx, loaded, ended)
        tx.repos.rules.add_set(rules.hash, rules.text, tx.now)
        tx.run.rules_hash = rules.hash
        loaded.brain, loaded.origin = brain, replace(loaded.origin, rules_hash=rules.hash)
        tx.audit(
            AuditEvent(
                actor=actor,
                action=AuditAction.RUN_RULES_CHANGED,
                reason=AuditReason.RULES_REPLACED,
                subject=tx.run.id,
                message=message,
                before={"rules_hash": before},
                after={"rules_hash": rules.hash},
            )
        )

    def add_catalogs(self, tx: RunTransaction, catalogs: Sequence[Catalog]) -> None:
        """Make more series available to the rules."""
        loaded = self._touch(tx, save=True)
        for catalog in catalogs:
            loaded.brain.add_catalog(catalog)

    def set_snapshots(self, tx: RunTransaction, snapshots: Sequence[SnapshotInfo]) -> None:
        """Replace the list of snapshots that the job holds."""
        self._touch(tx, save=True).brain.set_snapshots(snapshots)

    def feed(
        self, tx: RunTransaction, blocks: Sequence[FrameBlock], markers: Sequence[Marker] = ()
    ) -> None:
        """Evaluate a batch of the newest attempt."""
        newest = max((float(block.times.max()) for block in blocks if len(block)), default=None)
        if newest is not None:
            behind = max(0.0, tx.now.timestamp() - newest)
            self.tick(tx, Tick(tx.run.step, silent=0.0, stalled=0.0, behind=behind))
        loaded = self._touch(tx, save=bool(markers))
        record = partial(self._record, tx, loaded)
        loaded.show(blocks, markers, RunContext(tx).at, record)

    def tick(self, tx: RunTransaction, tick: Tick) -> None:
        """Show the rules a clock. A tick that changes no alert leaves no trace."""
        if not self._has_clock(tx.repos, tx.run.rules_hash):
            return
        if not self._brain(tx).brain.would_change(tick):
            return
        loaded = self._touch(tx, save=True)
        self._record(tx, loaded, loaded.brain.tick(tick))
        tx.repos.rules.add_tick(
            TickRow(
                run_id=tx.run.id,
                version=tx.run.version,
                step=tick.step,
                silent=tick.silent,
                stalled=tick.stalled,
                behind=tick.behind,
                at=tx.now,
            )
        )

    def needs_ticks(self, repos: Repositories, run_id: str) -> bool:
        """Return whether a run has rules on wall-clock time."""
        run = repos.runs.get(run_id)
        return run is not None and self._has_clock(repos, run.rules_hash)

    def _has_clock(self, repos: Repositories, rules_hash: str) -> bool:
        known = self._with_clock.get(rules_hash)
        if known is None:
            text = repos.rules.text(rules_hash)
            try:
                rules = stored_rules(text, rules_hash).rules
            except RuleFileError:  # of another version
                rules = ()
            known = any(rule.clock is not None for rule in rules)
            self._with_clock[rules_hash] = known
        return known

    def pass_by(self, tx: RunTransaction) -> None:
        """Count a batch of an earlier attempt, which the rules do not evaluate.

        It raises the run's version too: versions give the order in which batches arrived.
        """
        self._touch(tx, save=False)

    def end_run(self, tx: RunTransaction) -> None:
        """Close open alerts and incidents: no more steps will come."""
        loaded = self._touch(tx, save=True)
        self._record(tx, loaded, loaded.brain.end_run(tx.run.step))

    def plan(self, tx: RunTransaction) -> SamplingPlan:
        """Return the sampling plan for the job."""
        return self._brain(tx).brain.sampling_plan

    def healthy_snapshots(self, tx: RunTransaction) -> tuple[str, ...]:
        """Return the ids of the healthy snapshots, this transaction's frames included."""
        return self._brain(tx).brain.healthy_snapshots

    def num_broken_rules(self) -> int:
        """Count the rules whose last evaluation failed, over the runs in memory. Takes no lock."""
        return sum(
            not rule.ok for loaded in self._brains.all() for rule in loaded.brain.rule_health
        )

    def settle(self, tx: RunTransaction) -> None:
        """Pass changed commands to the rules, until they change no more."""
        while tx.changed_commands:
            command = to_command(tx.changed_commands.pop(0))
            loaded = self._touch(tx, save=True)
            self._record(tx, loaded, loaded.brain.command_changed(command))

    def before_commit(self, tx: RunTransaction) -> None:
        """Settle, and store the brain and its status."""
        self.settle(tx)
        if not tx.is_judged:
            return
        loaded = self._brain(tx)
        _store_status(tx, loaded)
        if loaded.is_dirty or loaded.steps_since_save >= SAVE_EVERY_STEPS:
            save_brain(tx, loaded)

    def forget(self, run_id: str) -> None:
        """Drop a brain whose transaction was rolled back, or whose run was deleted."""
        self._brains.drop(run_id)

    def _touch(self, tx: RunTransaction, *, save: bool) -> StoredBrain:
        """Return the brain for a change, and raise the run's version."""
        loaded = self._brain(tx)
        tx.is_judged = True
        tx.run.version += 1
        loaded.version = tx.run.version
        loaded.is_dirty = loaded.is_dirty or save
        return loaded

    def _brain(self, tx: RunTransaction) -> StoredBrain:
        loaded = self._brains.get(tx.run.id)
        # The version differs if another collector has changed the run, or if a transaction of ours
        # was committed although it reported an error.
        if loaded is None or loaded.version != tx.run.version:
            loaded = self._restore(tx)
        return loaded

    def _record(self, tx: RunTransaction, loaded: StoredBrain, outcome: Outcome) -> None:
        if outcome:
            self._recorder.record(tx, loaded.origin, outcome)

    def _restore(self, tx: RunTransaction) -> StoredBrain:
        row = saved_state(tx)
        try:
            rules = stored_rules(tx.repos.rules.text(row.rules_hash), row.rules_hash)
            loaded = restore_brain(tx, row, rules, self._catalogs)
        except (ConfigurationError, RuleFileError):
            logger.warning(
                "run %s: the saved rule state cannot be loaded; the rules restart", tx.run.id
            )
            return self._replace(tx, row)
        self._brains.put(tx.run.id, loaded)
        self._replay(tx, loaded, row)
        return loaded

    def _replay(self, tx: RunTransaction, loaded: StoredBrain, row: BrainStateRow) -> None:
        context = loaded.context
        outcomes: list[Outcome] = []
        for _, blocks in tx.repos.frames.evaluated_after(tx.run.id, row.version):
            loaded.show(blocks, (), lambda _step: context, outcomes.append)
        if outcomes:
            # Another version of the rules may decide differently on the same frames.
            logger.warning("run %s: the replay made decisions that are not stored", tx.run.id)
            tx.is_judged = True
            for outcome in outcomes:
                self._record(tx, loaded, outcome)

    def _replace(self, tx: RunTransaction, row: BrainStateRow) -> StoredBrain:
        _close_open(tx)
        try:
            rules = load_rules(tx.repos.rules.text(tx.run.rules_hash))
        except RuleFileError:
            rules = self.default_rules
        return self._succeed(tx, rules, row.generation)

    def _succeed(self, tx: RunTransaction, rules: RuleFile, generation: int) -> StoredBrain:
        """Replace the run's brain by a fresh one."""
        offset = tx.repos.incidents.last_number(tx.run.id)
        before = tx.run.rules_hash
        tx.repos.rules.add_set(rules.hash, rules.text, tx.now)
        tx.run.rules_hash = rules.hash
        loaded = fresh_brain(tx, rules, Origin(generation + 1, offset, rules.hash), self._catalogs)
        attempt = tx.repos.attempts.get(tx.run.id, tx.run.attempt)
        from_step = tx.run.step if attempt is None else attempt.last_step
        self._record(
            tx,
            loaded,
            # Not `resume`, which inhibits rules: the job itself did not restart.
            loaded.brain.begin_attempt(tx.run.attempt, from_step, MarkerKind.ROLLBACK),
        )
        loaded.brain.set_snapshots(tx.repos.attempts.snapshots(tx.run.id))
        self._brains.put(tx.run.id, loaded)
        tx.is_judged = True
        tx.audit(
            AuditEvent(
                actor=COLLECTOR,
                action=AuditAction.RUN_RULES_CHANGED,
                reason=AuditReason.RULES_REPLACED,
                subject=tx.run.id,
                message="the run's rules restart with an empty state",
                before={"rules_hash": before},
                after={"rules_hash": rules.hash},
            )
        )
        return loaded


@lru_cache(maxsize=64)
def stored_rules(text: str, rules_hash: str) -> RuleFile:
    """Parse a stored rule file; cached, since brains are dropped and restored often."""
    return load_rules(text, f"rules {rules_hash}")


def default_rules(repos: Repositories, file_rules: RuleFile) -> RuleFile:
    """Return the rules of runs whose jobs bring none: the newest version of the file, or itself."""
    return _newest(repos, None, file_rules.hash) or file_rules


def rules_of_job(repos: Repositories, run_id: str, brought: RuleFile | None) -> RuleFile | None:
    """Return the version that counts for a run whose job brings these rules, or none.

    None if there is none, or if the job's file has changed since.
    """
    return _newest(repos, run_id, "" if brought is None else brought.hash)


def _newest(repos: Repositories, run_id: str | None, base: str) -> RuleFile | None:
    row = repos.rules.newest_version(run_id)
    if row is None or row.base != base:
        return None
    return stored_rules(repos.rules.text(row.hash), row.hash)


def _store_status(tx: RunTransaction, loaded: StoredBrain) -> None:
    """Store the status of the rules, so that reads need neither the brain nor the lock."""
    status = tx.repos.rules.status(tx.run.id)
    if status is None:
        status = tx.repos.rules.add_status(tx.run.id)
    healthy = list(loaded.brain.healthy_snapshots)
    if healthy != status.healthy:
        status.healthy = healthy
        tx.is_visible = True
    if loaded.brain.phase != tx.run.phase:
        tx.run.phase = loaded.brain.phase.value
        tx.is_visible = True
    status.health = [asdict(rule) for rule in loaded.brain.rule_health]
    risk = loaded.brain.risk
    status.risk = None if risk is None else risk.as_json()


def _close_open(tx: RunTransaction) -> None:
    """Resolve the alerts and incidents of rules that are replaced."""
    for alert in tx.repos.alerts.unsettled(tx.run.id):
        alert.state = AlertState.RESOLVED.value
        alert.resolved_step = tx.run.step
    for incident in tx.repos.incidents.unresolved(tx.run.id):
        before = incident.state
        incident.state = IncidentState.RESOLVED.value
        incident.resolved_step, incident.resolved_at = tx.run.step, tx.now
        tx.audit(
            AuditEvent(
                actor=COLLECTOR,
                action=AuditAction.INCIDENT_CHANGED,
                reason=AuditReason.RULES_REPLACED,
                subject=incident.id,
                message="the state of the rules that opened it could not be loaded",
                before={"state": before},
                after={"state": incident.state},
            )
        )
