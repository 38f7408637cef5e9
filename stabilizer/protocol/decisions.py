"""Alerts, incidents, and decisions with their typed reasons."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, Field

from stabilizer.protocol.message import Message


class Mode(StrEnum):
    """Autonomy of the policy: watch only, propose commands, or send them."""

    OBSERVE = "observe"
    PROPOSE = "propose"
    AUTO = "auto"


class Severity(StrEnum):
    """Severity of a rule, mildest first."""

    NOTICE = "notice"
    PRECURSOR = "precursor"
    DIVERGENCE = "divergence"


class AlertState(StrEnum):
    """State of an alert."""

    INACTIVE = "inactive"
    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


class IncidentState(StrEnum):
    """State of an incident."""

    OPEN = "open"
    ACTING = "acting"
    WATCHING = "watching"
    RESOLVED = "resolved"


class DecisionKind(StrEnum):
    """Kind of a decision of the policy."""

    WAIT = "wait"
    ACT = "act"
    PROPOSE = "propose"
    HOLD = "hold"
    """The policy would act, but a guard or the mode holds it back."""
    RESOLVE = "resolve"
    ESCALATE = "escalate"
    """The ladder is exhausted: an operator must act."""


class DecisionReason(StrEnum):
    """Reason of a decision."""

    # for waiting
    MAY_RECOVER = "may_recover"
    """A sudden jump, or a notice, often recovers by itself: wait until a deadline."""
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
    """Id of the alert."""
    run_id: str
    """The run that it belongs to."""
    attempt: int
    """The attempt in which it became pending."""
    rule: str
    """Name of the rule."""
    rule_hash: str
    """Hash of the rule file that holds the rule."""
    severity: Severity
    """Severity of the rule."""
    series: str
    """Text form of the series, or of the labels of the quorum."""
    state: AlertState
    """Its state."""
    pending_step: int
    """First step at which the condition held."""
    firing_step: int | None = None
    """Step at which it fired; null if it has not."""
    resolved_step: int | None = None
    """Step at which it was resolved; null if it is not."""
    value: float | None = Field(default=None)
    """The sample that made it fire, NaN and infinity included; null if it has not fired."""
    score: float | None = None
    """What the detector compared with the threshold; null if there is none."""
    threshold: float | None = None
    """The threshold; null if the detector has none."""
    message: str = ""
    """Explanation for the reader."""
    incident_id: str | None = None
    """The incident that it belongs to; null if none."""


class Decision(Message):
    """One decision on an incident, with its reason."""

    step: int
    """Step at which it was made."""
    attempt: int
    """Attempt in which it was made."""
    kind: DecisionKind
    """What was decided."""
    reason: DecisionReason
    """Why."""
    message: str = ""
    """Explanation for the reader."""
    rung: int | None = None
    """Index of the rung of the ladder, from 0; null if no rung is involved."""
    deadline_step: int | None = None
    """Step until which the policy waits or watches; null if it does neither."""
    command_id: str | None = None
    """The command that was issued or proposed; null for none."""


class Incident(Message):
    """A group of alerts of one run that is decided on together."""

    id: str
    """Id of the incident."""
    run_id: str
    """The run that it belongs to."""
    number: int
    """Number of the incident within the run, from 1."""
    state: IncidentState
    """Its state."""
    attempt: int
    """The attempt in which it opened."""
    first_step: int
    """Step of its first alert."""
    opened_step: int
    """Step at which it opened."""
    resolved_step: int | None = None
    """Step at which it was resolved; null while it is open."""
    severity: Severity
    """The highest severity of its alerts."""
    rules: tuple[str, ...] = ()
    """Rules of its alerts, in the order in which they fired."""
    rung: int = 0
    """Index of the current rung of the ladder, from 0."""
    decision: DecisionKind
    """Kind of the latest decision."""
    reason: DecisionReason
    """Reason of the latest decision."""
    message: str = ""
    """Explanation of the latest decision."""
    decisions: tuple[Decision, ...] = ()
    """All decisions on it, oldest first."""
    helped: bool | None = None
    """Whether its last intervention helped; null if that is undecided."""
    opened_at: AwareDatetime
    """When it opened."""
    resolved_at: AwareDatetime | None = None
    """When it was resolved; null while it is open."""
