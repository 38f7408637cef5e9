"""Alerts, incidents and the typed reasons of every decision."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from stabilizer.protocol.message import Message


class Mode(StrEnum):
    """How far the policy may go by itself."""

    OBSERVE = "observe"
    PROPOSE = "propose"
    AUTO = "auto"


class Severity(StrEnum):
    """What a rule means when it fires, mildest first."""

    NOTICE = "notice"
    PRECURSOR = "precursor"
    DIVERGENCE = "divergence"


class AlertState(StrEnum):
    """State of a rule on one set of labels."""

    INACTIVE = "inactive"
    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


class IncidentState(StrEnum):
    """State of the alerts that call for one decision."""

    OPEN = "open"
    ACTING = "acting"
    WATCHING = "watching"
    RESOLVED = "resolved"


class DecisionKind(StrEnum):
    """What the policy decided."""

    WAIT = "wait"
    ACT = "act"
    PROPOSE = "propose"
    HOLD = "hold"
    """Would act, but a guard or the mode holds it back."""
    RESOLVE = "resolve"
    ESCALATE = "escalate"
    """The ladder is used up: a person is needed."""


class DecisionReason(StrEnum):
    """Why."""

    # for waiting
    MAY_RECOVER = "may_recover"
    """An instant jump, or a notice: it often heals by itself. Waits until a deadline."""
    SECOND_SIGNAL_MISSING = "second_signal_missing"
    COMMAND_IN_FLIGHT = "command_in_flight"
    WATCHING = "watching"
    # for acting
    DIVERGENCE = "divergence"
    PRECURSOR_CONFIRMED = "precursor_confirmed"
    RELAPSE = "relapse"
    DEADLINE_PASSED = "deadline_passed"
    COMMAND_FAILED = "command_failed"
    MANUAL = "manual"
    # for holding back
    MODE_OBSERVE = "mode_observe"
    MODE_PROPOSE = "mode_propose"
    BUDGET_SPENT = "budget_spent"
    COOLDOWN = "cooldown"
    DISARMED = "disarmed"
    SILENCED = "silenced"
    NO_HEALTHY_SNAPSHOT = "no_healthy_snapshot"
    LADDER_EXHAUSTED = "ladder_exhausted"
    # for resolving
    RECOVERED_BY_ITSELF = "recovered_by_itself"
    INTERVENTION_HELPED = "intervention_helped"
    CLOSED_BY_PERSON = "closed_by_person"
    RUN_ENDED = "run_ended"


class Alert(Message):
    """A rule's instance on one set of labels."""

    id: str
    run_id: str
    attempt: int
    rule: str
    rule_hash: str
    severity: Severity
    series: str
    """Text form of the series, or of the labels of the quorum."""
    state: AlertState
    pending_step: int
    firing_step: int | None = None
    resolved_step: int | None = None
    value: float | None = Field(default=None)
    """The sample that made it fire; may be NaN or Inf."""
    score: float | None = None
    """What the detector compared with its threshold."""
    threshold: float | None = None
    message: str = ""
    incident_id: str | None = None


class Decision(Message):
    """One decision on an incident, with its reason."""

    step: int
    attempt: int
    kind: DecisionKind
    reason: DecisionReason
    message: str = ""
    rung: int | None = None
    """Index of the ladder's rung, from 0."""
    deadline_step: int | None = None
    command_id: str | None = None


class Incident(Message):
    """The alerts of one run that call for one decision."""

    id: str
    run_id: str
    number: int
    """Counts the incidents of the run, from 1."""
    state: IncidentState
    attempt: int
    """The attempt in which it opened."""
    first_step: int
    """Step of the first alert in it: the first precursor."""
    opened_step: int
    resolved_step: int | None = None
    severity: Severity
    rules: tuple[str, ...] = ()
    """Rules whose alerts belong to it, in the order in which they fired."""
    rung: int = 0
    decision: DecisionKind
    reason: DecisionReason
    """The latest decision and its reason."""
    message: str = ""
    decisions: tuple[Decision, ...] = ()
    helped: bool | None = None
    opened_at: datetime
    resolved_at: datetime | None = None
