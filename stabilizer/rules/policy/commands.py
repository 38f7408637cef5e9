"""Follows commands to their end: the policy's own and manual ones."""

from __future__ import annotations

from typing import Final

from stabilizer.protocol.commands import (
    Command,
    CommandState,
    RejectReason,
    RollbackParameters,
)
from stabilizer.protocol.decisions import DecisionKind, DecisionReason, IncidentState
from stabilizer.rules.outcome import DecisionRecord, Outcome
from stabilizer.rules.policy.guards import kinds
from stabilizer.rules.policy.memory import Flight, IncidentRecord, Memory, Watch
from stabilizer.rules.spec import PolicySpec

POLICY_ACTOR: Final = "policy"


class CommandDesk:
    """Follows the commands of one run."""

    def __init__(self, spec: PolicySpec) -> None:
        self._guards = spec.guards
        self._pace = spec.pace

    def change(self, memory: Memory, command: Command) -> Outcome:
        """Process a command's new state. The same state again changes nothing."""
        out = Outcome()
        incident = memory.incident
        flight = None if incident is None else incident.flight
        if incident is not None and flight is not None and _is_same(flight, command):
            flight.command_id = command.id
            self._own(memory, incident, command, out)
        elif command.actor == POLICY_ACTOR and command.state is CommandState.APPLIED:
            self._applied_late(memory, command, out)
        elif command.actor != POLICY_ACTOR and kinds(command.parameters):
            self._manual(memory, command, out)
        return out

    # the policy's own commands

    def _own(
        self, memory: Memory, incident: IncidentRecord, command: Command, out: Outcome
    ) -> None:
        flight = incident.flight
        if flight is None:
            return
        if command.state in (CommandState.PENDING, CommandState.DELIVERED):
            flight.proposed = False
        elif command.state is CommandState.APPLIED:
            incident.flight = None
            memory.manual_done = [*memory.manual_done[-31:], command.id]
            self._applied(memory, incident, command, out)
        elif command.is_settled:
            incident.flight = None
            self._failed(memory, incident, flight, command, out)

    def _applied(
        self, memory: Memory, incident: IncidentRecord, command: Command, out: Outcome
    ) -> None:
        memory.ledger.note(command.parameters)
        if not kinds(command.parameters):  # the pause at the end of the ladder
            incident.state = IncidentState.OPEN
            incident.is_escalated = True
            out.incidents.append(incident.change())
            return
        self._watch(memory, incident, command, out)

    def _watch(
        self, memory: Memory, incident: IncidentRecord, command: Command, out: Outcome
    ) -> None:
        incident.was_treated = True
        watch = self._begin_watch(memory, incident, command)
        self._record(
            memory,
            incident,
            out,
            DecisionKind.WAIT,
            DecisionReason.WATCHING,
            f"{command.kind} applied; watching its effect",
            deadline=watch.until_step,
        )

    def _begin_watch(self, memory: Memory, incident: IncidentRecord, command: Command) -> Watch:
        watch = _watch(memory, incident, command, memory.paced(self._pace, self._guards.watch))
        incident.state = IncidentState.WATCHING
        incident.watch = watch
        return watch

    def _failed(
        self,
        memory: Memory,
        incident: IncidentRecord,
        flight: Flight,
        command: Command,
        out: Outcome,
    ) -> None:
        incident.state = IncidentState.OPEN
        if flight.proposed and command.state is CommandState.EXPIRED:
            # An unanswered proposal says nothing about the rung: it is proposed again if still due.
            # Otherwise a night without an operator would use up the whole ladder.
            text = f"the proposal to {command.kind} expired without an answer"
            kind, why = DecisionKind.HOLD, DecisionReason.COMMAND_FAILED
            self._record(memory, incident, out, kind, why, text)
            return
        incident.num_failed += 1
        incident.cause = DecisionReason.COMMAND_FAILED
        reason = command.reason if command.result is None else command.result.reason
        was_refused = reason == RejectReason.REFUSED_BY_PERSON
        if was_refused or command.state is CommandState.CANCELLED:
            cooldown = memory.paced(self._pace, self._guards.cooldown)
            incident.held_until = memory.ledger.trained + cooldown
        if incident.num_failed >= self._guards.max_tries:
            incident.is_escalated = not kinds(command.parameters)
            incident.next_rung(flight.rung + 1)
        text = f"{command.kind} was not applied: {command.state}" + (
            f", {reason}" if reason else ""
        )
        self._record(memory, incident, out, DecisionKind.HOLD, DecisionReason.COMMAND_FAILED, text)

    def _applied_late(self, memory: Memory, command: Command, out: Outcome) -> None:
        """Process a command that the job applied after it had expired or been superseded.

        It counts against budget and cooldown, and is watched. Another command that has not been
        delivered is cancelled, so that the job is not treated twice.
        """
        if not kinds(command.parameters) or command.id in memory.manual_done:
            return
        memory.manual_done = [*memory.manual_done[-31:], command.id]
        memory.ledger.note(command.parameters)
        incident = memory.incident
        if incident is None or incident.state is IncidentState.WATCHING:
            return
        if incident.flight is not None:
            out.cancellations.append(incident.flight.key)
            incident.flight = None
        incident.cause = None
        incident.acted_step = memory.step
        self._watch(memory, incident, command, out)

    # manual commands

    def _manual(self, memory: Memory, command: Command, out: Outcome) -> None:
        is_known = command.id in memory.manual
        if command.state is CommandState.PROPOSED:
            return
        if not command.is_settled:
            if not is_known:
                memory.manual.append(command.id)
                self._give_way(memory, command, out)
            return
        if is_known:
            memory.manual.remove(command.id)
        if command.state is CommandState.APPLIED and command.id not in memory.manual_done:
            memory.manual_done = [*memory.manual_done[-31:], command.id]
            self._manual_applied(memory, command, out)

    def _give_way(self, memory: Memory, command: Command, out: Outcome) -> None:
        """Cancel the proposal: an operator sent another command."""
        incident = memory.incident
        if incident is None or incident.flight is None or not incident.flight.proposed:
            return
        out.cancellations.append(incident.flight.key)
        incident.flight = None
        incident.state = IncidentState.OPEN
        text = f"{command.actor} sent {command.kind}"
        self._record(
            memory, incident, out, DecisionKind.WAIT, DecisionReason.COMMAND_IN_FLIGHT, text
        )

    def _manual_applied(self, memory: Memory, command: Command, out: Outcome) -> None:
        memory.ledger.note(command.parameters)
        incident = memory.incident
        if incident is None:
            return
        if incident.flight is not None:
            out.cancellations.append(incident.flight.key)
            incident.flight = None
        incident.was_treated = True
        incident.reference = memory.loss.reference
        incident.acted_step = memory.step
        watch = self._begin_watch(memory, incident, command)
        self._record(
            memory,
            incident,
            out,
            DecisionKind.ACT,
            DecisionReason.MANUAL,
            f"{command.actor} applied {command.kind}",
            deadline=watch.until_step,
        )

    @staticmethod
    def _record(  # noqa: PLR0913  a decision has these parts
        memory: Memory,
        incident: IncidentRecord,
        out: Outcome,
        kind: DecisionKind,
        reason: DecisionReason,
        message: str,
        *,
        deadline: int | None = None,
    ) -> None:
        incident.last = (kind, reason, None)
        decision = DecisionRecord(
            memory.step, memory.attempt, kind, reason, message, deadline_step=deadline
        )
        out.incidents.append(incident.change(decision))


def _is_same(flight: Flight, command: Command) -> bool:
    if flight.command_id is not None:
        return flight.command_id == command.id
    return (
        command.actor == POLICY_ACTOR
        and command.issued_step == flight.issued_step
        and command.attempt == flight.attempt
        and command.parameters == flight.parameters
    )


def _watch(memory: Memory, incident: IncidentRecord, command: Command, num_steps: int) -> Watch:
    """Start a watch: from the job's step, and past its step at the time of the command.

    What comes again at the same data comes there, and is noticed a little later.
    """
    parameters, read_back = command.parameters, None
    if command.result is not None:
        read_back = command.result.read_back
    is_rollback = isinstance(parameters, RollbackParameters)
    step, skipped = memory.step, 0
    if isinstance(parameters, RollbackParameters):
        step, skipped = parameters.target.step, parameters.skip_steps
    if read_back is not None:
        step = read_back.step
    again = incident.acted_step + (num_steps // 4 if is_rollback else 0)
    return Watch(
        since=memory.ledger.trained,
        from_step=step,
        until_step=max(step + num_steps, again),
        is_rollback=is_rollback,
        reference=incident.reference,
        awaits_attempt=is_rollback and memory.attempt <= command.attempt,
        onset=incident.first_step,
        skipped=skipped,
    )
