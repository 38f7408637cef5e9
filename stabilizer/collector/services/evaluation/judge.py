"""Brings every event of a run before its rules, and writes down what they say."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache, partial

from stabilizer.collector.services.evaluation.context import ContextSource, FixedContext
from stabilizer.collector.services.evaluation.recorder import Origin, Recorder
from stabilizer.collector.services.evaluation.seats import (
    SAVE_EVERY_STEPS,
    CatalogCache,
    Seat,
    SeatCache,
    restore_seat,
    save_seat,
    saved_state,
    show_batch,
)
from stabilizer.collector.services.unit_of_work import COLLECTOR, AuditEvent, RunTransaction
from stabilizer.collector.storage.models import AttemptRow, BrainStateRow
from stabilizer.collector.storage.repositories.decisions import to_command
from stabilizer.errors import ConfigurationError, RuleFileError
from stabilizer.protocol.batches import Marker, MarkerKind, SamplingPlan, SnapshotInfo
from stabilizer.protocol.decisions import AlertState, IncidentState
from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.queries import AuditAction, AuditReason
from stabilizer.protocol.series import Catalog
from stabilizer.rules.brain import Brain
from stabilizer.rules.loader import RuleFile, load_rules
from stabilizer.rules.outcome import Outcome, RuleHealth

logger = logging.getLogger(__name__)


class Judge:
    """The rules of all runs. Every call is made under the run's lock, in its transaction.

    Args:
        recorder: Writes outcomes.
        default_rules: For runs that bring none of their own.
    """

    def __init__(self, recorder: Recorder, default_rules: RuleFile) -> None:
        self.default_rules = default_rules
        self._recorder = recorder
        self._seats = SeatCache()
        self._catalogs = CatalogCache()

    def begin(self, tx: RunTransaction, rules: RuleFile) -> None:
        """Give a new run its first brain."""
        self._seats.put(tx.run.id, self._fresh_seat(tx, rules, Origin(1, 0, rules.hash)))

    def begin_attempt(self, tx: RunTransaction, attempt: AttemptRow) -> None:
        """Tell the rules that steps may repeat from here on."""
        seat = self._touch(tx, save=True)
        seat.seen.clear()
        reason = MarkerKind(attempt.reason)
        self._record(tx, seat, seat.brain.begin_attempt(attempt.number, attempt.from_step, reason))

    def change_rules(self, tx: RunTransaction, rules: RuleFile) -> None:
        """Judge a run by other rules from now on; what the old ones had open is closed."""
        old = self._touch(tx, save=True)
        if old.origin.rules_hash == rules.hash:
            return
        self._record(tx, old, old.brain.end_run(tx.run.step))
        self._succeed(tx, rules, old.origin.generation)

    def add_catalogs(self, tx: RunTransaction, catalogs: Sequence[Catalog]) -> None:
        """Let the rules select from more series."""
        seat = self._touch(tx, save=True)
        for catalog in catalogs:
            seat.brain.add_catalog(catalog)

    def set_snapshots(self, tx: RunTransaction, snapshots: Sequence[SnapshotInfo]) -> None:
        """Tell the rules what the job holds."""
        self._touch(tx, save=True).brain.set_snapshots(snapshots)

    def feed(
        self, tx: RunTransaction, blocks: Sequence[FrameBlock], markers: Sequence[Marker] = ()
    ) -> None:
        """Let the rules see a batch of the newest attempt."""
        seat = self._touch(tx, save=bool(markers))
        record = partial(self._record, tx, seat)
        show_batch(seat, blocks, markers, ContextSource(tx), record)

    def pass_by(self, tx: RunTransaction) -> None:
        """Note a batch of an attempt gone by, which the rules do not see.

        The run's version goes up with it as well: versions are the order in which batches came.
        """
        self._touch(tx, save=False)

    def end_run(self, tx: RunTransaction) -> None:
        """Close what is open: no more steps will come."""
        seat = self._touch(tx, save=True)
        self._record(tx, seat, seat.brain.end_run(tx.run.step))

    def plan(self, tx: RunTransaction) -> SamplingPlan:
        """Return how often the job shall measure."""
        return self._seat(tx).brain.sampling_plan

    def healthy_snapshots(self, tx: RunTransaction) -> tuple[str, ...]:
        """Return the ids of the snapshots that the rules hold to be healthy."""
        return tuple(self._seat(tx).brain.healthy_snapshots)

    def rule_health(self, tx: RunTransaction) -> list[RuleHealth]:
        """Return whether each rule works."""
        return list(self._seat(tx).brain.rule_health)

    def num_broken_rules(self) -> int:
        """Count the rules that failed last, over the runs in memory. Needs no lock."""
        return sum(not rule.ok for seat in self._seats.all() for rule in seat.brain.rule_health)

    def settle(self, tx: RunTransaction) -> None:
        """Tell the rules what has become of commands, until they have nothing more to say."""
        while tx.changed_commands:
            command = to_command(tx.changed_commands.pop(0))
            seat = self._touch(tx, save=True)
            self._record(tx, seat, seat.brain.command_changed(command))

    def before_commit(self, tx: RunTransaction) -> None:
        """Finish a transaction: settle, and save what must not be lost."""
        self.settle(tx)
        if not tx.is_judged:
            return
        seat = self._seat(tx)
        self._note_health(tx, seat)
        if seat.is_dirty or seat.steps_since_save >= SAVE_EVERY_STEPS:
            save_seat(tx, seat)

    def _note_health(self, tx: RunTransaction, seat: Seat) -> None:
        healthy = tuple(seat.brain.healthy_snapshots)
        if healthy != seat.healthy:
            seat.healthy = healthy
            tx.is_visible = True

    def forget(self, run_id: str) -> None:
        """Drop a brain that ran ahead of a transaction that failed, or whose run is gone."""
        self._seats.drop(run_id)

    def _touch(self, tx: RunTransaction, *, save: bool) -> Seat:
        """Return the seat for a change; the run's version goes up with it."""
        seat = self._seat(tx)
        tx.is_judged = True
        tx.run.version += 1
        seat.version = tx.run.version
        seat.is_dirty = seat.is_dirty or save
        return seat

    def _seat(self, tx: RunTransaction) -> Seat:
        seat = self._seats.get(tx.run.id)
        # Another version means that another collector, or a transaction of ours whose end we did
        # not see, has moved the run on.
        if seat is None or seat.version != tx.run.version:
            seat = self._rebuild(tx)
        return seat

    def _record(self, tx: RunTransaction, seat: Seat, outcome: Outcome) -> None:
        if outcome:
            self._recorder.record(tx, seat.origin, outcome)

    def _rebuild(self, tx: RunTransaction) -> Seat:
        row = saved_state(tx)
        try:
            rules = _stored_rules(tx.repos.rules.text(row.rules_hash), row.rules_hash)
            seat = restore_seat(tx, row, rules, self._catalogs)
        except (ConfigurationError, RuleFileError):
            logger.warning("run %s: saved rules cannot go on; they begin anew", tx.run.id)
            return self._begin_anew(tx, row)
        self._seats.put(tx.run.id, seat)
        self._replay(tx, seat, row)
        seat.healthy = tuple(seat.brain.healthy_snapshots)
        return seat

    def _replay(self, tx: RunTransaction, seat: Seat, row: BrainStateRow) -> None:
        contexts = FixedContext(seat.context)
        said: list[Outcome] = []
        for _, blocks in tx.repos.frames.evaluated_after(tx.run.id, row.version):
            show_batch(seat, blocks, (), contexts, said.append)
        if said:
            # Rules of another version of this program may see what those of the time did not.
            logger.warning("run %s: the replay decided what was not on record", tx.run.id)
            tx.is_judged = True
            for outcome in said:
                self._record(tx, seat, outcome)

    def _begin_anew(self, tx: RunTransaction, row: BrainStateRow) -> Seat:
        _close_open(tx)
        try:
            rules = load_rules(tx.repos.rules.text(tx.run.rules_hash))
        except RuleFileError:
            rules = self.default_rules
        return self._succeed(tx, rules, row.generation)

    def _succeed(self, tx: RunTransaction, rules: RuleFile, generation: int) -> Seat:
        """Put a fresh brain in the place of one that cannot go on."""
        offset = tx.repos.incidents.last_number(tx.run.id)
        before = tx.run.rules_hash
        tx.repos.rules.add_set(rules.hash, rules.text, tx.now)
        tx.run.rules_hash = rules.hash
        seat = self._fresh_seat(tx, rules, Origin(generation + 1, offset, rules.hash))
        attempt = tx.repos.attempts.get(tx.run.id, tx.run.attempt)
        from_step = tx.run.step if attempt is None else attempt.last_step
        self._record(
            tx,
            seat,
            # Nothing has happened to the job itself, so not `resume`, after which rules hold still.
            seat.brain.begin_attempt(tx.run.attempt, from_step, MarkerKind.ROLLBACK),
        )
        seat.brain.set_snapshots(tx.repos.attempts.snapshots(tx.run.id))
        self._seats.put(tx.run.id, seat)
        tx.is_judged = True
        tx.audit(
            AuditEvent(
                actor=COLLECTOR,
                action=AuditAction.RUN_RULES_CHANGED,
                reason=AuditReason.RULES_REPLACED,
                subject=tx.run.id,
                message="a fresh set of rules judges the run from here on",
                before={"rules_hash": before},
                after={"rules_hash": rules.hash},
            )
        )
        return seat

    def _fresh_seat(self, tx: RunTransaction, rules: RuleFile, origin: Origin) -> Seat:
        brain = Brain(rules)
        for catalog_id in tx.repos.catalogs.of_run(tx.run.id):
            brain.add_catalog(self._catalogs.get(tx.repos, catalog_id))
        return Seat(
            brain=brain,
            origin=origin,
            version=tx.run.version,
            context=ContextSource(tx).at(tx.run.step),
            seen={},
            is_dirty=True,
        )


@lru_cache(maxsize=64)
def _stored_rules(text: str, rules_hash: str) -> RuleFile:
    """Read a stored rule file once: with many runs, brains make room for others and come back."""
    return load_rules(text, f"rules {rules_hash}")


def _close_open(tx: RunTransaction) -> None:
    """Resolve alerts and incidents that nobody watches any more."""
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
                message="the rules that opened it cannot go on",
                before={"state": before},
                after={"state": incident.state},
            )
        )
