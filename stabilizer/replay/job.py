"""A recorded run as a live one: frames go to the rules, commands are applied, snapshots are kept.

The rules are evaluated by the code that a collector and a job without one use. A replay cannot
change the past: a command counts as applied one row later, and the data continue as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np

from stabilizer.logs.stream import LogStep
from stabilizer.protocol.batches import MarkerKind, SnapshotInfo
from stabilizer.protocol.commands import (
    Command,
    CommandKind,
    CommandResult,
    CommandState,
    ReadBack,
    RollbackParameters,
)
from stabilizer.protocol.decisions import AlertState, DecisionKind, DecisionReason, Mode, Severity
from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.series import Catalog
from stabilizer.rules.brain import Brain
from stabilizer.rules.loaded_brain import LoadedBrain
from stabilizer.rules.loader import RuleFile
from stabilizer.rules.outcome import (
    AlertChange,
    AlertKey,
    CommandIntent,
    IncidentChange,
    Outcome,
    PolicyContext,
    RuleHealth,
)
from stabilizer.rules.policy.loss_level import loss_column

SNAPSHOT_EVERY: Final = 25
KEPT_SNAPSHOTS: Final = 6
"""As the agent's defaults."""
_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
_RUN_ID: Final = "replay"


@dataclass(frozen=True, slots=True)
class Proposal:
    """A command that the policy would have sent."""

    step: int
    attempt: int
    kind: CommandKind
    text: str
    """What it would do."""
    reason: DecisionReason
    incident: int
    rules: tuple[str, ...]
    """Rules of the incident when it was decided."""


@dataclass(slots=True)
class AlertSpan:
    """An alert that fired."""

    rule: str
    series: str
    severity: Severity
    pending_step: int
    step: int
    """The step at which it fired."""
    resolved_step: int | None
    value: float | None
    message: str


@dataclass(frozen=True, slots=True)
class DecisionNote:
    """A decision on an incident."""

    step: int
    attempt: int
    incident: int
    kind: DecisionKind
    reason: DecisionReason
    message: str
    rules: tuple[str, ...]
    helped: bool | None


@dataclass(slots=True)
class ReplayResult:
    """Outcome of a replay: alerts, decisions and commands."""

    rows: int = 0
    """Steps with a value."""
    first_step: int | None = None
    last_step: int | None = None
    attempts: int = 0
    """Attempts that the log shows."""
    proposals: list[Proposal] = field(default_factory=list)
    alerts: list[AlertSpan] = field(default_factory=list)
    decisions: list[DecisionNote] = field(default_factory=list)
    health: list[RuleHealth] = field(default_factory=list)
    """Of every rule, at the end."""


class SimulatedRing:
    """The snapshots that the agent would hold: the newest few, and the newest healthy one."""

    def __init__(self, every: int = SNAPSHOT_EVERY, capacity: int = KEPT_SNAPSHOTS) -> None:
        self._every = every
        self._capacity = capacity
        self._sequence = 0
        self.held: list[SnapshotInfo] = []

    def reach(
        self, step: int, attempt: int, *, since: int, finite: bool, healthy: tuple[str, ...]
    ) -> bool:
        """Take the snapshots that are due after one step and up to another.

        A log may name every tenth step only: the job takes its snapshots in between all the same.

        Returns:
            Whether there is a new one.
        """
        newest = self.held[-1].step if self.held else -1
        first = max(since + 1, newest + 1, step - self._every * (self._capacity + 1))
        due = [at for at in range(first, step + 1) if at % self._every == 0]
        if not due and not self.held:
            due = [step]  # the first of an attempt is taken at once
        for at in due:
            self._add(at, attempt, finite=finite, healthy=healthy)
        return bool(due)

    def _add(self, step: int, attempt: int, *, finite: bool, healthy: tuple[str, ...]) -> None:
        names = set(healthy)
        kept = (info.id for info in reversed(self.held) if info.finite and info.id in names)
        protected = next(kept, None)
        self._shrink(self._capacity - 1, protected)  # the agent makes room before it takes one
        self._sequence += 1
        name = f"step{step}-{self._sequence}"
        if not finite:  # its id only, and only of the newest such
            self.held = [info for info in self.held if info.finite]
        self.held.append(SnapshotInfo(id=name, attempt=attempt, step=step, finite=finite))
        self._shrink(self._capacity, protected)

    def _shrink(self, capacity: int, protected: str | None) -> None:
        while True:
            restorable = [info for info in self.held if info.finite]
            droppable = [info for info in restorable[:-1] if info.id != protected]
            if len(restorable) <= max(capacity, 1) or not droppable:
                return
            self.held.remove(droppable[0])

    def drop_after(self, step: int) -> None:
        """Drop snapshots after a step: a rollback has abandoned them."""
        self.held = [info for info in self.held if info.step <= step]

    def clear(self) -> None:
        """Drop everything: the process has ended."""
        self.held = []


class ReplayedJob:
    """Shows the steps of one run to the rules.

    Args:
        rules: The rules and the policy.
        mode: How far the policy may go; in `auto` it sends its commands, and they are applied.
        on_outcome: Called with a step and what changed at it.
    """

    def __init__(
        self,
        rules: RuleFile,
        mode: Mode = Mode.AUTO,
        on_outcome: Callable[[int, Outcome], None] | None = None,
    ) -> None:
        self.result = ReplayResult()
        self._brain = Brain(rules)
        self._loaded = LoadedBrain(self._brain, PolicyContext(mode))
        self._on_outcome = on_outcome
        self._ring = SimulatedRing()
        self._attempt = 0
        self._step = 0
        self._is_finite = True
        self._loss_columns: dict[str, tuple[int, bool] | None] = {}
        self._in_flight: list[Command] = []
        self._alerts: dict[AlertKey, AlertSpan] = {}

    def show(self, step: LogStep) -> None:
        """Show the frames of the next step."""
        if step.starts_attempt:
            self._start_attempt(step)
        self._apply()
        blocks = []
        for catalog, block in step.frames:
            self._brain.add_catalog(catalog)
            self._note_loss(catalog, block)
            blocks.append(block)
        before, self._step = self._step, step.step
        for tick in step.ticks:
            self._take(self._brain.tick(tick))
        context = self._loaded.context
        self._loaded.show(blocks, step.markers, lambda _step: context, self._take)
        self._snapshot(before)
        result = self.result
        result.rows += 1
        result.first_step = step.step if result.first_step is None else result.first_step
        result.last_step = step.step

    def finish(self) -> ReplayResult:
        """Close what is open: the log has ended."""
        self._take(self._brain.end_run(self._step))
        self.result.health = self._brain.rule_health
        return self.result

    @property
    def brain(self) -> Brain:
        """The rules' state."""
        return self._brain

    def _start_attempt(self, step: LogStep) -> None:
        """Begin an attempt that the recording shows.

        The first rows of a log are no resume: they may be cut out of a longer log. A restarted
        process holds no snapshots; one that was rolled back has dropped those after its target.
        """
        is_first = self._attempt == 0
        from_step = max(0, step.step - 1) if step.from_step is None else step.from_step
        if step.reason is MarkerKind.ROLLBACK:
            self._ring.drop_after(from_step)
        else:
            self._ring.clear()
        self.result.attempts += 1
        self._step = from_step
        self._begin_attempt(0 if is_first and step.from_step is None else from_step, step.reason)

    def _begin_attempt(self, from_step: int, reason: MarkerKind) -> None:
        self._attempt += 1
        self._loaded.seen.clear()
        self._take(self._brain.begin_attempt(self._attempt, from_step, reason))
        self._brain.set_snapshots(self._ring.held)

    def _note_loss(self, catalog: Catalog, block: FrameBlock) -> None:
        if catalog.id not in self._loss_columns:
            self._loss_columns[catalog.id] = loss_column(catalog)
        found = self._loss_columns[catalog.id]
        if found is not None and (block.present is None or block.present[0][found[0]]):
            self._is_finite = bool(np.isfinite(block.values[0][found[0]]))

    def _snapshot(self, before: int) -> None:
        healthy = self._brain.healthy_snapshots
        if self._ring.reach(
            self._step, self._attempt, since=before, finite=self._is_finite, healthy=healthy
        ):
            self._brain.set_snapshots(self._ring.held)

    def _apply(self) -> None:
        """Report to the rules that their commands were applied at the boundary after their step."""
        step = self._step
        waiting, self._in_flight = self._in_flight, []
        for command in waiting:
            read_back = ReadBack(attempt=self._attempt, step=step)
            self._take(self._brain.command_changed(applied_command(command, step, read_back)))
            if isinstance(command.parameters, RollbackParameters):
                self._ring.drop_after(command.parameters.target.step)
                self._begin_attempt(step, MarkerKind.ROLLBACK)

    def _take(self, out: Outcome) -> None:
        if not out:
            return
        if self._on_outcome is not None:
            self._on_outcome(self._step, out)
        for change in out.alerts:
            self._note_alert(change)
        for incident in out.incidents:
            self._note_decision(incident)
        rules = {incident.number: incident.rules for incident in out.incidents}
        cancelled = set(out.cancellations)
        self._in_flight = [command for command in self._in_flight if command.id not in cancelled]
        for intent in out.commands:
            self._issue(intent, rules.get(intent.incident, ()))

    def _issue(self, intent: CommandIntent, rules: tuple[str, ...]) -> None:
        proposal = Proposal(
            step=intent.issued_step,
            attempt=intent.attempt,
            kind=intent.parameters.kind,
            text=intent.message,
            reason=intent.reason,
            incident=intent.incident,
            rules=rules,
        )
        self.result.proposals.append(proposal)
        command = issued_command(intent)
        self._take(self._brain.command_changed(command))
        if not intent.proposed:
            self._in_flight.append(command)

    def _note_alert(self, change: AlertChange) -> None:
        span = self._alerts.get(change.key)
        if change.state is AlertState.FIRING and span is None:
            span = self._alerts[change.key] = AlertSpan(
                rule=change.key.rule,
                series=change.key.series,
                severity=change.severity,
                pending_step=change.key.pending_step,
                step=change.step,
                resolved_step=None,
                value=change.value,
                message=change.message,
            )
            self.result.alerts.append(span)
        elif change.state is AlertState.RESOLVED and span is not None:
            span.resolved_step = change.step
            del self._alerts[change.key]

    def _note_decision(self, incident: IncidentChange) -> None:
        decision = incident.decision
        if decision is not None:
            self.result.decisions.append(
                DecisionNote(
                    step=decision.step,
                    attempt=decision.attempt,
                    incident=incident.number,
                    kind=decision.kind,
                    reason=decision.reason,
                    message=decision.message,
                    rules=incident.rules,
                    helped=incident.helped,
                )
            )


def issued_command(intent: CommandIntent) -> Command:
    """Make the command that a collector would issue for an intent."""
    return intent.command(_RUN_ID, _EPOCH, timedelta(0))


def applied_command(command: Command, step: int, read_back: ReadBack) -> Command:
    """Return the command with the result that a job reports after it has applied it."""
    result = CommandResult(
        command_id=command.id,
        state=CommandState.APPLIED,
        applied_step=step,
        read_back=read_back,
    )
    return command.model_copy(update={"state": CommandState.APPLIED, "result": result})


def replay(steps: Iterable[LogStep], rules: RuleFile, mode: Mode = Mode.AUTO) -> ReplayResult:
    """Replay a whole run."""
    job = ReplayedJob(rules, mode)
    for step in steps:
        job.show(step)
    return job.finish()
