"""What the policy remembers of a run: plain data, so that it can be saved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stabilizer.protocol.commands import CommandParameters
from stabilizer.protocol.decisions import DecisionKind, DecisionReason, IncidentState, Severity
from stabilizer.rules.alerting import ActiveAlert
from stabilizer.rules.outcome import AlertKey, CommandIntent, DecisionRecord, IncidentChange
from stabilizer.rules.policy.guards import InterventionLog, paced
from stabilizer.rules.policy.lineage import Lineage
from stabilizer.rules.policy.loss_level import LossLevel
from stabilizer.rules.policy.signals import RANKS, Signal
from stabilizer.rules.spec import PaceSpec


@dataclass(slots=True)
class Flight:
    """The command of an incident that is not settled yet."""

    key: str
    rung: int
    attempt: int
    parameters: CommandParameters
    issued_step: int
    proposed: bool
    command_id: str | None = None
    """Known once the command has been stored."""


@dataclass(slots=True)
class Watch:
    """The steps after an intervention in which its effect is measured."""

    since: int
    """Steps trained when the intervention was applied."""
    from_step: int
    """The job's step afterwards."""
    until_step: int
    is_rollback: bool
    reference: float
    """Level of the loss when it was decided; may be NaN."""
    awaits_attempt: bool = False
    """The job has rewound but the new attempt has not reported: incoming frames are of the old."""
    is_extended: bool = False
    onset: int | None = None
    """The job's step of the first sign of what was treated."""
    skipped: int = 0
    """Steps' worth of data left out from there on."""

    def is_same_data(self, first_step: int, tolerance: int) -> bool:
        """Return whether something begins at the data at which the treated began."""
        if not self.is_rollback or self.onset is None:
            return False
        return abs(first_step + self.skipped - self.onset) <= tolerance


@dataclass(slots=True)
class IncidentRecord:
    """An incident that is open. Times named `_at` and `since` are in steps trained."""

    number: int
    attempt: int
    first_step: int
    opened_step: int
    severity: Severity
    state: IncidentState = IncidentState.OPEN
    rules: list[str] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)
    rung: int = 0
    """The rung that is due, or under way."""
    num_issued: int = 0
    """Commands made for this rung."""
    num_failed: int = 0
    """Commands of this rung that were not applied."""
    flight: Flight | None = None
    watch: Watch | None = None
    cause: DecisionReason | None = None
    """Why the next action is due, if not for the alerts alone: a relapse, a failed command."""
    held_until: int = 0
    """An operator refused a command: no proposal before this step."""
    quiet_since: int | None = None
    is_escalated: bool = False
    was_treated: bool = False
    """An intervention was applied in it."""
    is_in_data: bool = False
    """It came again at the same data after a rollback."""
    reference: float = float("nan")
    """Level of the loss when the last command was made."""
    before: float = float("nan")
    """Level of the loss before the first sign; NaN if it is not known."""
    before_spread: float = 0.0
    acted_step: int = 0
    last: tuple[DecisionKind, DecisionReason, int | None] | None = None
    missing: list[int] = field(default_factory=list)
    """Rungs whose lack of a healthy snapshot has been reported."""
    unreported: list[AlertKey] = field(default_factory=list)

    def join(
        self, firing: Mapping[AlertKey, ActiveAlert], old: frozenset[AlertKey], now: int, keep: int
    ) -> None:
        """Update the incident with the alerts that fire now.

        Args:
            firing: Alerts that fire.
            old: Those that an earlier, resolved incident left firing.
            now: Steps trained.
            keep: Steps for which a resolved alert is remembered.
        """
        known = set()
        for signal in self.signals:
            known.add(signal.key)
            alert = firing.get(signal.key)
            if signal.is_firing and alert is None:
                signal.cleared_at = now
            signal.is_flagged = alert is not None and alert.is_flagged
        self.signals = [
            s for s in self.signals if s.cleared_at is None or now - s.cleared_at <= keep
        ]
        for key, alert in firing.items():
            if key not in known:
                self._add(key, alert, now, is_old=key in old)
        if firing:
            self.quiet_since = None
        elif self.quiet_since is None:
            self.quiet_since = now

    def _add(self, key: AlertKey, alert: ActiveAlert, now: int, *, is_old: bool) -> None:
        self.signals.append(Signal(key, alert.severity, now, first_step=alert.first_step))
        if is_old:
            return
        self.unreported.append(key)
        self.first_step = min(self.first_step, alert.first_step)
        if key.rule not in self.rules:
            self.rules.append(key.rule)
        if RANKS[alert.severity] > RANKS[self.severity]:
            self.severity = alert.severity

    def has_recovered(self, loss: LossLevel) -> bool:
        """Return whether the loss is back at its level before the incident.

        The level at which a command was made stands in for one that is not known.
        """
        if math.isfinite(self.before):
            return loss.is_as_good_as(self.before, self.before_spread)
        return loss.is_as_good_as(self.reference)

    def is_quiet(self, now: int, steps: int) -> bool:
        """Return whether nothing has fired for so many steps."""
        return self.quiet_since is not None and now - self.quiet_since >= steps

    def next_rung(self, rung: int) -> None:
        """Make a rung the one that is due."""
        self.rung = rung
        self.num_issued = 0
        self.num_failed = 0

    @property
    def next_key(self) -> str:
        """The key of the next command, the same in every replay."""
        return f"incident-{self.number}/rung-{self.rung}/try-{self.num_issued}"

    def launch(self, flight: Flight, decision: DecisionRecord) -> CommandIntent:
        """Issue a command."""
        self.flight = flight
        self.num_issued += 1
        return CommandIntent(
            key=flight.key,
            incident=self.number,
            rung=flight.rung,
            attempt=flight.attempt,
            parameters=flight.parameters,
            reason=decision.reason,
            message=decision.message,
            issued_step=flight.issued_step,
            proposed=flight.proposed,
        )

    def change(
        self,
        decision: DecisionRecord | None = None,
        *,
        resolved_step: int | None = None,
        helped: bool | None = None,
    ) -> IncidentChange:
        """Describe the incident in its current state."""
        joined, self.unreported = tuple(self.unreported), []
        return IncidentChange(
            number=self.number,
            state=self.state,
            attempt=self.attempt,
            first_step=self.first_step,
            opened_step=self.opened_step,
            severity=self.severity,
            rules=tuple(self.rules),
            rung=self.rung,
            resolved_step=resolved_step,
            helped=helped,
            decision=decision,
            alerts=joined,
        )


def open_incident(
    number: int, attempt: int, step: int, alerts: Iterable[ActiveAlert], loss: LossLevel
) -> IncidentRecord:
    """Open an incident for alerts that fire."""
    alerts = list(alerts)
    severity = max((alert.severity for alert in alerts), key=RANKS.__getitem__)
    first = min(alert.first_step for alert in alerts)
    before, spread = loss.before(first)
    return IncidentRecord(
        number, attempt, first, step, severity, before=before, before_spread=spread
    )


@dataclass(slots=True)
class Memory:
    """The state of the policy of one run."""

    lineage: Lineage
    attempt: int = 1
    step: int = 0
    num_incidents: int = 0
    incident: IncidentRecord | None = None
    """The open incident."""
    ledger: InterventionLog = field(default_factory=InterventionLog)
    loss: LossLevel = field(default_factory=LossLevel)
    left_over: list[AlertKey] = field(default_factory=list)
    """Alerts that still fire although their incident is resolved; they open no other."""
    manual: list[str] = field(default_factory=list)
    """Ids of manual interventions in flight."""
    manual_done: list[str] = field(default_factory=list)
    """Ids of the last applied commands, manual and our own: reported twice, they count once."""

    def paced(self, pace: PaceSpec | None, steps: int, since: int | None = None) -> int:
        """Fit a number of steps to the run up to now, or up to `since` steps trained."""
        trained = self.ledger.trained if since is None else since
        return paced(pace, steps, trained, self.loss.spacing)
