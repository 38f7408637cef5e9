"""The report of the demo: events, losses of the live lineage, and checks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from stabilizer.protocol.commands import Command, CommandKind, CommandState, RollbackParameters
from stabilizer.protocol.decisions import Alert, DecisionKind, Incident
from stabilizer.protocol.queries import SeriesData
from stabilizer.protocol.runs import Attempt
from trainer.demo.options import PROTECTED, UNDISTURBED, UNPROTECTED, Disturbances


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A loss curve with its abandoned branches."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    abandoned: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...] = ()
    """Branches left by a rollback, each as steps and losses."""

    def final(self, num_steps: int) -> float:
        """Mean of the last losses; NaN or Inf among them makes it so. NaN without any loss."""
        tail = self.losses[-num_steps:]
        return math.fsum(tail) / len(tail) if tail and all(map(math.isfinite, tail)) else math.nan


def follow(attempts: Sequence[Attempt], data: Sequence[SeriesData]) -> Curve:
    """Put the attempts of one series together.

    An attempt that starts at step s continues after sample s of the lineage before it; everything
    behind s is its abandoned branch.
    """
    by_attempt: Mapping[int, SeriesData] = {part.attempt: part for part in data}
    steps: list[int] = []
    losses: list[float] = []
    abandoned: list[tuple[tuple[int, ...], tuple[float, ...]]] = []
    for attempt in sorted(attempts, key=lambda one: one.number):
        kept = sum(step <= attempt.from_step for step in steps)
        if steps[kept:]:
            abandoned.append((tuple(steps[kept:]), tuple(losses[kept:])))
        del steps[kept:], losses[kept:]
        part = by_attempt.get(attempt.number)
        if part is not None:
            steps.extend(part.steps)
            losses.extend(part.values)
    return Curve(steps=tuple(steps), losses=tuple(losses), abandoned=tuple(abandoned))


TOLERANCE: Final = 0.05
"""The protected arm may end this far from the undisturbed one."""
HARM: Final = 0.20
"""The unprotected arm must end at least this much worse."""
_WEIGHT: Final = (
    DecisionKind.RESOLVE,
    DecisionKind.WAIT,
    DecisionKind.HOLD,
    DecisionKind.PROPOSE,
    DecisionKind.ACT,
    DecisionKind.ESCALATE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmOutcome:
    """What the collector knows of one arm at the end."""

    curve: Curve
    final_loss: float
    alerts: Sequence[Alert]
    incidents: Sequence[Incident]
    commands: Sequence[Command]


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoCheck:
    """One condition of success."""

    name: str
    passed: bool
    found: str


def verdict(arms: Mapping[str, ArmOutcome], disturbances: Disturbances) -> list[DemoCheck]:
    """Judge the story; the demo succeeds if every check passed."""
    undisturbed, unprotected, protected = (
        arms[arm.name] for arm in (UNDISTURBED, UNPROTECTED, PROTECTED)
    )
    base = undisturbed.final_loss
    drift = abs(protected.final_loss / base - 1)
    harm = unprotected.final_loss / base - 1
    rollbacks = [one for one in applied(protected.commands) if one.kind is CommandKind.ROLLBACK]
    alerts = alerts_on_bad_documents(protected.alerts, disturbances)
    early = [one for one in protected.commands if _issued_before_restart(one, disturbances)]
    return [
        DemoCheck(
            name=f"protected ends within {TOLERANCE:.0%} of undisturbed",
            passed=math.isfinite(drift) and drift <= TOLERANCE,
            found=f"{protected.final_loss:.4f} against {base:.4f} ({_percent(drift)} away)",
        ),
        DemoCheck(
            name=f"unprotected ends at least {HARM:.0%} worse, or not finite",
            passed=math.isfinite(base) and not harm < HARM,
            found=f"{unprotected.final_loss:.4f} ({_percent(harm)} worse)",
        ),
        DemoCheck(
            name="at least one rollback was applied",
            passed=bool(rollbacks),
            found=f"{len(rollbacks)} applied",
        ),
        DemoCheck(
            name="the bad documents raised an alert and no command",
            passed=bool(alerts) and not early,
            found=f"{len(alerts)} alerts, {len(early)} commands",
        ),
        DemoCheck(
            name="no command on the undisturbed arm",
            passed=not undisturbed.commands,
            found=f"{len(undisturbed.commands)} commands",
        ),
    ]


def build_report(
    arms: Mapping[str, ArmOutcome],
    checks: Sequence[DemoCheck],
    *,
    seed: int,
    seconds: float,
    final_steps: int,
) -> dict[str, Any]:
    """Build the JSON report. A number that is not finite is null."""
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "passed": all(check.passed for check in checks),
        "checks": [
            {"name": check.name, "passed": check.passed, "found": check.found} for check in checks
        ],
        "final_loss_steps": final_steps,
        "arms": {name: _arm(outcome) for name, outcome in arms.items()},
        "incidents": [
            _incident(name, incident)
            for name, outcome in arms.items()
            for incident in sorted(outcome.incidents, key=lambda incident: incident.number)
        ],
        "commands": [
            _command(name, command)
            for name, outcome in arms.items()
            for command in outcome.commands
        ],
        "steps_lost": steps_lost(arms[PROTECTED.name].commands),
        "steps_to_action": steps_to_action(arms[PROTECTED.name]),
    }


def applied(commands: Sequence[Command]) -> list[Command]:
    """Commands that the job carried out, oldest first."""
    done = [command for command in commands if command.state is CommandState.APPLIED]
    return sorted(done, key=lambda command: command.issued_at)


def steps_lost(commands: Sequence[Command]) -> int:
    """Optimizer steps undone by rollbacks."""
    return sum(
        command.result.applied_step - command.parameters.target.step
        for command in applied(commands)
        if isinstance(command.parameters, RollbackParameters)
        and command.result is not None
        and command.result.applied_step is not None
    )


def steps_to_action(outcome: ArmOutcome) -> int | None:
    """Steps from the first alert of the acted-on incident to the first applied command."""
    incidents = {incident.id: incident for incident in outcome.incidents}
    for command in applied(outcome.commands):
        incident = incidents.get(command.incident_id or "")
        if incident and command.result and command.result.applied_step is not None:
            return command.result.applied_step - incident.first_step
    return None


def alerts_on_bad_documents(alerts: Sequence[Alert], disturbances: Disturbances) -> list[Alert]:
    """Alerts that began to fire while or just after the documents were bad."""
    return [
        alert
        for alert in alerts
        if alert.firing_step is not None
        and disturbances.bad_from <= alert.firing_step <= disturbances.bad_until + 5
    ]


def _issued_before_restart(command: Command, disturbances: Disturbances) -> bool:
    return command.issued_step is None or command.issued_step < disturbances.restart_at


def weightiest(incident: Incident) -> tuple[str, str]:
    """The decision with the most consequence, and its reason."""
    if not incident.decisions:
        return incident.decision, incident.reason
    chosen = max(incident.decisions, key=lambda decision: _WEIGHT.index(decision.kind))
    return chosen.kind, chosen.reason


def _arm(outcome: ArmOutcome) -> dict[str, Any]:
    return {
        "final_loss": _number(outcome.final_loss),
        "losses": [_number(loss) for loss in outcome.curve.losses],
        "steps": list(outcome.curve.steps),
        "abandoned": [
            {"steps": list(steps), "losses": [_number(loss) for loss in losses]}
            for steps, losses in outcome.curve.abandoned
        ],
    }


def _incident(arm: str, incident: Incident) -> dict[str, Any]:
    decision, reason = weightiest(incident)
    return {
        "arm": arm,
        "number": incident.number,
        "rule": incident.rules[0] if incident.rules else None,
        "rules": list(incident.rules),
        "severity": incident.severity,
        "first_step": incident.first_step,
        "decision": decision,
        "reason": reason,
        "outcome": incident.reason,
        "state": incident.state,
        "resolved_step": incident.resolved_step,
        "helped": incident.helped,
    }


def _command(arm: str, command: Command) -> dict[str, Any]:
    result = command.result
    return {
        "arm": arm,
        "kind": command.kind,
        "state": command.state,
        "reason": command.reason,
        "parameters": command.parameters.model_dump(mode="json"),
        "issued_step": command.issued_step,
        "applied_step": result.applied_step if result else None,
        "read_back": result.read_back.model_dump(mode="json")
        if result and result.read_back
        else None,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else "not finite"
