"""What the brain decides: changes of alerts and incidents, commands to issue or cancel.

Nothing here has an id of the database. Alerts are named by (attempt, rule, series, pending step),
incidents by their number within the run, commands by a key that a replay makes again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from stabilizer.protocol.commands import Command, CommandParameters, CommandState
from stabilizer.protocol.decisions import (
    AlertState,
    DecisionKind,
    DecisionReason,
    IncidentState,
    Mode,
    Severity,
)


class AlertKey(NamedTuple):
    """The name of an alert within its run."""

    attempt: int
    rule: str
    series: str
    pending_step: int


@dataclass(frozen=True, slots=True)
class AlertChange:
    """A transition of an alert, with all that is known of it afterwards."""

    key: AlertKey
    severity: Severity
    state: AlertState
    """PENDING, FIRING or RESOLVED; INACTIVE ends an alert that was pending and never fired."""
    step: int
    """The step at which it changed."""
    firing_step: int | None = None
    resolved_step: int | None = None
    value: float | None = None
    """The sample that made it change; may be NaN or Inf."""
    score: float | None = None
    threshold: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """One decision on an incident."""

    step: int
    attempt: int
    kind: DecisionKind
    reason: DecisionReason
    message: str = ""
    rung: int | None = None
    deadline_step: int | None = None
    command_key: str | None = None
    """The `CommandIntent` that it made."""


@dataclass(frozen=True, slots=True)
class IncidentChange:
    """An incident after a change. The first change with its number opens it."""

    number: int
    state: IncidentState
    attempt: int
    first_step: int
    opened_step: int
    severity: Severity
    rules: tuple[str, ...]
    rung: int
    resolved_step: int | None = None
    helped: bool | None = None
    decision: DecisionRecord | None = None
    """The decision of this change; None if only rules, severity or state changed."""
    alerts: tuple[AlertKey, ...] = ()
    """Alerts that joined with this change."""


@dataclass(frozen=True, slots=True)
class CommandIntent:
    """A command that the policy wants. The same key again is the same command."""

    key: str
    incident: int
    rung: int
    attempt: int
    parameters: CommandParameters
    reason: DecisionReason
    message: str
    issued_step: int
    proposed: bool
    """Needs approval before it is sent."""

    def command(self, run_id: str, issued_at: datetime, lifetime: timedelta) -> Command:
        """Make the command, as it is issued."""
        return Command(
            id=self.key,
            run_id=run_id,
            attempt=self.attempt,
            parameters=self.parameters,
            state=CommandState.PROPOSED if self.proposed else CommandState.PENDING,
            reason=self.reason,
            message=self.message,
            issued_step=self.issued_step,
            issued_at=issued_at,
            expires_at=issued_at + lifetime,
        )


@dataclass(slots=True)
class Outcome:
    """Everything that one call changed, in the order in which it happened."""

    alerts: list[AlertChange] = field(default_factory=list)
    incidents: list[IncidentChange] = field(default_factory=list)
    commands: list[CommandIntent] = field(default_factory=list)
    cancellations: list[str] = field(default_factory=list)
    """Keys of earlier intents to be cancelled: superseded, or no longer needed."""

    def __bool__(self) -> bool:
        return bool(self.alerts or self.incidents or self.commands or self.cancellations)


@dataclass(slots=True)
class RuleHealth:
    """Whether a rule works. A rule that raises marks itself and stops no other."""

    name: str
    ok: bool = True
    """Whether its last evaluation worked."""
    last_error: str | None = None
    """Its last failure, kept when it works again."""
    evaluations: int = 0
    note: str = ""
    """Why it cannot judge yet: it selects nothing, or is learning."""


@dataclass(frozen=True, slots=True)
class PolicyContext:
    """What operators have set, at the time of a decision."""

    mode: Mode
    disarmed: bool = False
    silenced: frozenset[str] = frozenset()
    """Names of muted rules; `*` mutes all."""
