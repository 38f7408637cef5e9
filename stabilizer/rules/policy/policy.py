"""The policy of a run: at most one open incident, and what is decided on it."""

from __future__ import annotations

from collections.abc import Mapping

from stabilizer.protocol.commands import Command
from stabilizer.protocol.decisions import DecisionReason
from stabilizer.rules.alerting import ActiveAlert
from stabilizer.rules.outcome import AlertKey, Outcome, PolicyContext
from stabilizer.rules.policy.commands import CommandDesk
from stabilizer.rules.policy.incident import IncidentRecord, open_incident
from stabilizer.rules.policy.ladder import Ladder
from stabilizer.rules.policy.lineage import Lineage
from stabilizer.rules.policy.memory import Memory
from stabilizer.rules.policy.signals import ActOn
from stabilizer.rules.policy.turn import Doctrine, Turn, resolve_incident
from stabilizer.rules.policy_spec import PolicySpec


class Policy:
    """Decides on the alerts of one run.

    Args:
        spec: The policy of the rule file.
        spoiling: Rules whose firing means that the weights may be spoilt: only a rollback helps.
    """

    def __init__(self, spec: PolicySpec, spoiling: frozenset[str]) -> None:
        self._doctrine = Doctrine(
            spec, ActOn(spec.act_on, spec.wait), Ladder(spec.ladder), spoiling
        )
        self._desk = CommandDesk(spec.guards)
        self._look_back = max(spec.guards.budget.per_steps, spec.guards.cooldown)
        self.memory = Memory(Lineage(spec.healthy_after))

    def begin_attempt(self, number: int, from_step: int) -> None:
        """Go on from a step in a new attempt."""
        memory = self.memory
        memory.attempt = number
        memory.step = from_step
        memory.ledger.begin_attempt(from_step)
        memory.lineage.begin_attempt(number, from_step)
        memory.loss.begin_attempt()
        memory.left_over = []
        if memory.incident is not None and memory.incident.watch is not None:
            memory.incident.watch.awaits_attempt = False

    def decide(
        self, step: int, context: PolicyContext, active: Mapping[AlertKey, ActiveAlert]
    ) -> Outcome:
        """Decide on what is active after all frames of a step."""
        out, memory = Outcome(), self.memory
        memory.step = step
        memory.ledger.advance(step)
        memory.ledger.forget_before(self._look_back)
        memory.lineage.judge(step, active.values())
        firing = {key: alert for key, alert in active.items() if alert.is_firing}
        memory.left_over = [key for key in memory.left_over if key in firing]
        old = frozenset(memory.left_over)
        incident = memory.incident or self._open(step, firing, old)
        if incident is None:
            return out
        within = self._doctrine.spec.act_on.within
        incident.join(firing, old, memory.ledger.trained, within)
        Turn(self._doctrine, memory, incident, context, out).take()
        if incident.unreported:
            out.incidents.append(incident.change())
        return out

    def _open(
        self, step: int, firing: Mapping[AlertKey, ActiveAlert], old: frozenset[AlertKey]
    ) -> IncidentRecord | None:
        memory = self.memory
        fresh = [alert for key, alert in firing.items() if key not in old]
        if not fresh:
            return None
        memory.num_incidents += 1
        memory.incident = open_incident(memory.num_incidents, memory.attempt, step, fresh)
        return memory.incident

    def command_changed(self, command: Command) -> Outcome:
        """Take note of a command's new state."""
        return self._desk.change(self.memory, command)

    def end_run(self, step: int) -> Outcome:
        """Close what is open: the run is over."""
        out, memory = Outcome(), self.memory
        memory.step = max(step, memory.step)
        incident = memory.incident
        if incident is not None:
            if incident.flight is not None:
                out.cancellations.append(incident.flight.key)
            resolve_incident(memory, out, DecisionReason.RUN_ENDED, helped=None)
        return out
