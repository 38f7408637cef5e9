"""The policy of a run: at most one open incident, and what is decided on it at each step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from stabilizer.protocol.batches import SnapshotInfo
from stabilizer.protocol.commands import (
    Command,
    CommandParameters,
    PauseParameters,
    ReduceLrParameters,
    RollbackParameters,
    SnapshotTarget,
)
from stabilizer.protocol.decisions import (
    DecisionKind,
    DecisionReason,
    IncidentState,
    Mode,
    Severity,
)
from stabilizer.rules.alerting import ActiveAlert
from stabilizer.rules.outcome import AlertKey, DecisionRecord, Outcome, PolicyContext
from stabilizer.rules.policy.commands import CommandDesk
from stabilizer.rules.policy.guards import Refusal
from stabilizer.rules.policy.lineage import Lineage
from stabilizer.rules.policy.memory import Flight, IncidentRecord, Memory, Watch, open_incident
from stabilizer.rules.policy.signals import ActOn, Signal
from stabilizer.rules.spec import PolicySpec, ReduceLrRung, RuleSpec, RungSpec

SAME_DATA: Final = 20
"""Steps within which two first signs are at the same data: a level takes so long to move."""
SAME_SAMPLES: Final = 3
"""The same in samples, where they are rare."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rung amounts to at this step."""

    rung: int
    parameters: CommandParameters
    text: str
    """For the decision's message."""
    without_snapshot: tuple[int, ...] = ()
    """Rungs that asked for a rollback for which no snapshot is healthy."""

    @property
    def is_last(self) -> bool:
        """Whether the ladder is used up and an operator is needed."""
        return isinstance(self.parameters, PauseParameters)


@dataclass(frozen=True, slots=True)
class Need:
    """What an incident asks of a rung."""

    first_step: int
    """Step of its first sign."""
    now: int
    """The job's step."""
    rollback: bool
    """The weights may be corrupt: a cut alone would not help."""
    is_in_data: bool
    """It came again at the same data: leave out all of them up to now."""


class Ladder:
    """The rungs of a policy; a pause follows the last one."""

    def __init__(self, rungs: tuple[RungSpec, ...]) -> None:
        self._rungs = rungs

    def plan(self, rung: int, need: Need, lineage: Lineage, remedy: RungSpec | None = None) -> Plan:
        """Plan the rung, or the next one that can be carried out.

        Args:
            rung: Index of the rung that is due, from 0.
            need: What the incident asks for.
            lineage: Knows the healthy snapshots.
            remedy: Takes the place of the first rung.
        """
        missing: list[int] = []
        for index in range(rung, len(self._rungs)):
            spec = self._rungs[index] if index or remedy is None else remedy
            if spec.pause:
                return _pause(index, missing)
            if spec.rollback is not None:
                target = lineage.target(need.first_step - spec.rollback.margin)
                if target is not None:
                    return _rollback(index, spec, target, need, missing)
                missing.append(index)
            if spec.reduce_lr is not None and not need.rollback:
                return _cut(index, spec.reduce_lr, missing)
        return self.pause(missing)

    def pause(self, missing: list[int] | None = None) -> Plan:
        """Plan the pause at the end of the ladder."""
        return _pause(len(self._rungs), missing or [])


def _pause(index: int, missing: list[int]) -> Plan:
    return Plan(index, PauseParameters(), "pause and call an operator", tuple(missing))


def _cut(index: int, spec: ReduceLrRung, missing: list[int]) -> Plan:
    return Plan(index, _cut_parameters(spec), _cut_text(spec), tuple(missing))


def _cut_parameters(spec: ReduceLrRung) -> ReduceLrParameters:
    ramp = 0 if spec.steps is None else spec.ramp_steps
    return ReduceLrParameters(factor=spec.factor, hold_steps=spec.steps, ramp_steps=ramp)


def _cut_text(spec: ReduceLrRung) -> str:
    held = "until told otherwise" if spec.steps is None else f"for {spec.steps} steps"
    return f"multiply the learning rate by {spec.factor:g} {held}"


def _rollback(
    index: int, spec: RungSpec, target: SnapshotInfo, need: Need, missing: list[int]
) -> Plan:
    skip = 0 if spec.rollback is None else spec.rollback.skip
    loses = need.now - target.step
    if need.is_in_data:
        skip = max(skip, loses)
    parameters = RollbackParameters(
        target=SnapshotTarget(snapshot_id=target.id, attempt=target.attempt, step=target.step),
        skip_steps=skip,
        reduce_lr=None if spec.reduce_lr is None else _cut_parameters(spec.reduce_lr),
    )
    text = f"roll back to step {target.step}"
    text += f" (loses {loses} steps)" if loses > 0 else ""
    text += f", skip the data of {skip} steps" if skip else ""
    text += f", {_cut_text(spec.reduce_lr)}" if spec.reduce_lr is not None else ""
    return Plan(index, parameters, text, tuple(missing))


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """A policy compiled from its rule file; immutable."""

    spec: PolicySpec
    act_on: ActOn
    ladder: Ladder
    spoiling: frozenset[str]
    """Rules whose alerts mean that the weights may be corrupt: only a rollback helps."""
    remedies: Mapping[str, RungSpec]
    """The first action by rule, in the order of the file."""


def remedies_of(rules: Iterable[RuleSpec]) -> dict[str, RungSpec]:
    """Return the first action by rule, in the order of the file.

    A condition on other rules comes before those: it is the closer description.
    """
    ordered: list[tuple[str, RungSpec]] = []
    for spec in rules:
        if spec.remedy is None:
            continue
        parts: frozenset[str] = frozenset() if spec.when is None else spec.when.rules()
        places = (place for place, (name, _) in enumerate(ordered) if name in parts)
        ordered.insert(next(places, len(ordered)), (spec.name, spec.remedy))
    return dict(ordered)


class Policy:
    """Decides on the alerts of one run.

    Args:
        spec: The policy of the rule file.
        spoiling: Rules whose alerts mean that the weights may be corrupt: only a rollback helps.
        remedies: The first action by rule, in the order of the file; then the ladder.
    """

    def __init__(
        self,
        spec: PolicySpec,
        spoiling: frozenset[str],
        remedies: Mapping[str, RungSpec] | None = None,
    ) -> None:
        act_on = ActOn(spec.act_on)
        ladder = Ladder(spec.ladder)
        self._policy = CompiledPolicy(spec, act_on, ladder, spoiling, remedies or {})
        self._desk = CommandDesk(spec)
        self._look_back = max(spec.guards.budget.per_steps, spec.guards.cooldown)
        self.memory = Memory(Lineage(spec.healthy_after))

    def begin_attempt(self, number: int, from_step: int) -> None:
        """Continue from a step in a new attempt."""
        memory = self.memory
        memory.attempt = number
        memory.step = from_step
        memory.ledger.begin_attempt(from_step)
        memory.lineage.begin_attempt(number, from_step)
        memory.loss.begin_attempt(from_step)
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
        within = self._policy.spec.act_on.within
        incident.join(firing, old, memory.ledger.trained, within)
        PolicyStep(self._policy, memory, incident, context, out).decide()
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
        number = memory.num_incidents
        memory.incident = open_incident(number, memory.attempt, step, fresh, memory.loss)
        return memory.incident

    def command_changed(self, command: Command) -> Outcome:
        """Process a command's new state."""
        return self._desk.change(self.memory, command)

    def end_run(self, step: int) -> Outcome:
        """Close the open incident: the run has ended."""
        out, memory = Outcome(), self.memory
        memory.step = max(step, memory.step)
        incident = memory.incident
        if incident is not None:
            if incident.flight is not None:
                out.cancellations.append(incident.flight.key)
            resolve_incident(memory, out, DecisionReason.RUN_ENDED, helped=None)
        return out


class PolicyStep:
    """One policy step: decides on an incident, records the outcome, updates the incident."""

    def __init__(
        self,
        policy: CompiledPolicy,
        memory: Memory,
        incident: IncidentRecord,
        context: PolicyContext,
        out: Outcome,
    ) -> None:
        self._policy = policy
        self._spec = policy.spec
        self._memory = memory
        self._incident = incident
        self._context = context
        self._out = out

    @property
    def _now(self) -> int:
        return self._memory.ledger.trained

    @property
    def _audible(self) -> list[Signal]:
        """Alerts that are not silenced."""
        silenced = self._context.silenced
        if "*" in silenced:
            return []
        return [s for s in self._incident.signals if s.key.rule not in silenced]

    def decide(self) -> None:
        """Decide."""
        match self._incident.state:
            case IncidentState.ACTING:
                self._follow_command()
            case IncidentState.WATCHING:
                self._watch()
            case _:
                self._consider()

    # open: to act, to wait, or to close

    def _consider(self) -> None:
        incident, signals = self._incident, self._audible
        cause = self._cause(signals)
        if cause is not None:
            self._act(incident.cause or cause)
        elif self._is_over():
            self._close()
        elif incident.is_escalated:
            return
        elif self._cause(incident.signals) is not None:
            self._decide(DecisionKind.HOLD, DecisionReason.SILENCED, "the rules are silenced")
        elif incident.quiet_since is None:
            self._wait(signals)

    def _is_over(self) -> bool:
        quiet = self._incident.is_quiet(self._now, self._spec.quiet)
        return quiet and self._memory.loss.is_finite

    def _close(self) -> None:
        incident = self._incident
        if not incident.was_treated:
            self._resolve(DecisionReason.RECOVERED_BY_ITSELF, None)
        elif incident.has_recovered(self._memory.loss):
            self._resolve(DecisionReason.INTERVENTION_HELPED, True)
        else:
            self._resolve(DecisionReason.RECOVERED_BY_ITSELF, False)

    def _wait(self, signals: list[Signal]) -> None:
        wait = self._paced(self._spec.wait)
        left = self._policy.act_on.wait_left(signals, self._now, wait)
        if any(s.is_firing and s.severity is not Severity.NOTICE for s in signals):
            text = "a precursor alone; waiting for a second signal"
            reason = DecisionReason.SECOND_SIGNAL_MISSING
        else:
            text, reason = "the loss may recover without action", DecisionReason.MAY_RECOVER
        self._decide(DecisionKind.WAIT, reason, text, steps=left)

    # to act: guards, then the next rung

    def _act(self, cause: DecisionReason, why: str = "") -> None:
        incident, memory = self._incident, self._memory
        if incident.is_escalated:
            return
        if memory.manual:
            text = "a manual command is in flight"
            self._decide(DecisionKind.WAIT, DecisionReason.COMMAND_IN_FLIGHT, text)
            return
        plan = self._plan()
        self._record_missing(plan)
        refusal = self._refusal(plan, is_spoilt=self._is_spoilt())
        if refusal is not None and self._pauses_for(refusal):
            self._issue(self._policy.ladder.pause(), cause, f"{refusal.message}: pause and call")
        elif refusal is not None:
            text = f"would {plan.text}: {refusal.message}"
            self._decide(
                DecisionKind.HOLD, refusal.reason, text, rung=plan.rung, steps=refusal.steps
            )
        else:
            self._issue(plan, cause, f"{why}: {plan.text}" if why else plan.text)

    def _plan(self) -> Plan:
        incident, memory = self._incident, self._memory
        need = Need(incident.first_step, memory.step, self._is_spoilt(), incident.is_in_data)
        return self._policy.ladder.plan(incident.rung, need, memory.lineage, self._remedy())

    def _pauses_for(self, refusal: Refusal) -> bool:
        is_spent = refusal.reason is DecisionReason.BUDGET_SPENT
        return is_spent and self._spec.guards.budget.then_pause

    def _cause(self, signals: Sequence[Signal]) -> DecisionReason | None:
        return self._policy.act_on.cause(signals, self._now, self._paced(self._spec.wait))

    def _paced(self, steps: int, since: int | None = None) -> int:
        return self._memory.paced(self._spec.pace, steps, since)

    def _remedy(self) -> RungSpec | None:
        firing = {signal.key.rule for signal in self._audible if signal.is_firing}
        remedies = self._policy.remedies
        return next((remedies[name] for name in remedies if name in firing), None)

    def _is_spoilt(self) -> bool:
        return not self._memory.loss.is_finite or any(
            s.is_firing and s.key.rule in self._policy.spoiling for s in self._audible
        )

    def _record_missing(self, plan: Plan) -> None:
        for rung in plan.without_snapshot:
            if rung not in self._incident.missing:
                self._incident.missing.append(rung)
                text = f"no healthy snapshot; next: {plan.text}"
                reason = DecisionReason.NO_HEALTHY_SNAPSHOT
                self._decide(DecisionKind.HOLD, reason, text, rung=rung)

    def _refusal(self, plan: Plan, *, is_spoilt: bool) -> Refusal | None:
        context, ledger, guards = self._context, self._memory.ledger, self._spec.guards
        if context.disarmed:
            return Refusal(DecisionReason.DISARMED, "all actions are disarmed")
        if context.mode is Mode.OBSERVE:
            return Refusal(DecisionReason.MODE_OBSERVE, "the mode is observe")
        if self._incident.held_until > self._now:
            left = self._incident.held_until - self._now
            return Refusal(DecisionReason.COOLDOWN, "an operator refused the last command", left)
        if plan.is_last:
            return None
        # waiting does not heal non-finite values
        cooldown = self._paced(guards.cooldown, ledger.last_intervention)
        refusal = None if is_spoilt else ledger.check_cooldown(cooldown)
        return refusal or ledger.check(guards, plan.parameters)

    def _issue(self, plan: Plan, cause: DecisionReason, text: str) -> None:
        incident, memory = self._incident, self._memory
        proposed = self._context.mode is Mode.PROPOSE
        if plan.rung != incident.rung:
            incident.next_rung(plan.rung)
        kind = DecisionKind.PROPOSE if proposed else DecisionKind.ACT
        if plan.is_last:
            kind, cause = DecisionKind.ESCALATE, DecisionReason.LADDER_EXHAUSTED
        flight = Flight(
            key=incident.next_key,
            rung=plan.rung,
            attempt=memory.attempt,
            parameters=plan.parameters,
            issued_step=memory.step,
            proposed=proposed,
        )
        incident.cause = None
        incident.state = IncidentState.ACTING
        incident.acted_step = memory.step
        incident.reference = memory.loss.reference
        decision = self._decide(kind, cause, text, rung=plan.rung, key=flight.key)
        self._out.commands.append(incident.launch(flight, decision))

    # acting: the command is in flight

    def _follow_command(self) -> None:
        flight = self._incident.flight
        if flight is None or not flight.proposed:
            return
        if self._is_over():
            self._out.cancellations.append(flight.key)
            self._close()
        elif self._is_outdated(flight) or (
            self._context.mode is Mode.AUTO and not self._context.disarmed
        ):
            self._out.cancellations.append(flight.key)
            self._incident.flight = None
            self._incident.state = IncidentState.OPEN
            self._consider()

    def _is_outdated(self, flight: Flight) -> bool:
        """Return whether another command than the proposed one is due.

        At once if its snapshot is gone or another kind is due, else after the cooldown.
        """
        if self._cause(self._audible) is None or self._context.mode is Mode.OBSERVE:
            return False
        due = self._plan().parameters
        if due == flight.parameters:
            return False
        is_late = self._memory.step - flight.issued_step >= self._paced(self._spec.guards.cooldown)
        return is_late or due.kind is not flight.parameters.kind or self._has_lost_target(flight)

    def _has_lost_target(self, flight: Flight) -> bool:
        parameters = flight.parameters
        if not isinstance(parameters, RollbackParameters):
            return False
        return parameters.target.snapshot_id not in self._memory.lineage.healthy

    # watching: measure the effect of the intervention

    def _watch(self) -> None:
        incident, watch, loss = self._incident, self._incident.watch, self._memory.loss
        if watch is None or watch.awaits_attempt:
            return
        signals = self._audible
        recent = [signal for signal in signals if _began_after(signal, watch)]
        persists = self._cause(signals) is not None
        if self._cause(recent) is not None or (persists and self._is_spoilt()):
            self._fired_again(watch, recent)
        elif persists and self._is_without_effect():
            self._relapse("no improvement since the cut")
        elif self._memory.step < watch.until_step:
            return
        elif persists:
            self._prolong(loss.is_better_than(watch.reference), "the alerts still fire")
        elif incident.has_recovered(loss):
            self._resolve(DecisionReason.INTERVENTION_HELPED, True)
        elif not watch.is_extended or loss.is_better_than(watch.reference):
            self._prolong(True, "")
        elif not loss.is_finite:
            self._relapse("the loss is not finite")
        else:
            self._resolve(DecisionReason.RECOVERED_BY_ITSELF, False)

    def _fired_again(self, watch: Watch, recent: Sequence[Signal]) -> None:
        first = min((s.first_step for s in recent if s.first_step is not None), default=None)
        tolerance = max(SAME_DATA, SAME_SAMPLES * self._memory.loss.spacing)
        self._incident.is_in_data |= first is not None and watch.is_same_data(first, tolerance)
        at = " at the same data" if self._incident.is_in_data else ""
        self._relapse(f"the alerts fired again{at}")

    def _is_without_effect(self) -> bool:
        """Return whether a cut has not lowered the loss by the end of the cooldown."""
        watch = self._incident.watch
        if watch is None or watch.is_rollback:
            return False
        cooldown = self._paced(self._spec.guards.cooldown, watch.since)
        is_due = self._now - watch.since >= cooldown
        return is_due and not self._memory.loss.is_better_than(watch.reference)

    def _prolong(self, is_improving: bool, otherwise: str) -> None:
        watch = self._incident.watch
        if watch is None or not is_improving:
            self._relapse(otherwise)
            return
        watch.is_extended = True
        watch.until_step = self._memory.step + self._paced(self._spec.guards.watch)
        watch.reference = self._memory.loss.reference

    def _relapse(self, why: str) -> None:
        incident = self._incident
        incident.next_rung(incident.rung + 1)
        incident.state = IncidentState.OPEN
        incident.watch = None
        incident.cause = DecisionReason.RELAPSE
        self._act(DecisionReason.RELAPSE, why)
        if incident.state is IncidentState.OPEN:
            self._out.incidents.append(incident.change())

    # recording

    def _decide(
        self,
        kind: DecisionKind,
        reason: DecisionReason,
        message: str,
        *,
        rung: int | None = None,
        steps: int | None = None,
        key: str | None = None,
    ) -> DecisionRecord:
        """Record a decision, unless it is the same as the last one."""
        incident, step = self._incident, self._memory.step
        record = DecisionRecord(
            step=step,
            attempt=self._memory.attempt,
            kind=kind,
            reason=reason,
            message=message,
            rung=rung,
            deadline_step=None if steps is None else step + steps,
            command_key=key,
        )
        if key is not None or incident.last != (kind, reason, rung):
            incident.last = (kind, reason, rung)
            self._out.incidents.append(incident.change(record))
        return record

    def _resolve(self, reason: DecisionReason, helped: bool | None) -> None:
        resolve_incident(self._memory, self._out, reason, helped=helped)


def _began_after(signal: Signal, watch: Watch) -> bool:
    """Return whether an alert became pending, not only fired, after the intervention."""
    return signal.fired_at > watch.since and signal.key.pending_step > watch.from_step


def resolve_incident(
    memory: Memory, out: Outcome, reason: DecisionReason, *, helped: bool | None
) -> None:
    """Close the open incident."""
    incident = memory.incident
    if incident is None:
        return
    incident.state = IncidentState.RESOLVED
    decision = DecisionRecord(memory.step, memory.attempt, DecisionKind.RESOLVE, reason)
    out.incidents.append(incident.change(decision, resolved_step=memory.step, helped=helped))
    memory.left_over = [s.key for s in incident.signals if s.is_firing]
    memory.incident = None
