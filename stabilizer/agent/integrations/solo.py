"""A job without a collector: the same rules and policy, evaluated in the job itself.

Enabled by `url=None`; a job that loses its collector does not start to evaluate rules itself. The
frames of a step are evaluated in the training thread when the next step's arrive, so that training
never waits for the device: a command comes one step after its cause.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Final

from stabilizer.agent.probes.record import PendingFrames
from stabilizer.clock import Clock
from stabilizer.protocol.batches import AttemptStart, Marker, MarkerKind, SamplingPlan, SnapshotInfo
from stabilizer.protocol.commands import (
    Command,
    CommandResult,
    CommandState,
    PauseParameters,
    RejectReason,
)
from stabilizer.protocol.runs import RunRegister, RunState
from stabilizer.rules.brain import Brain
from stabilizer.rules.loaded_brain import LoadedBrain
from stabilizer.rules.loader import default_rules, load_rules
from stabilizer.rules.outcome import CommandIntent, Outcome, PolicyContext

logger = logging.getLogger(__name__)

_RUN_ID: Final = "solo"
_TIME_TO_LIVE: Final = timedelta(hours=1)
"""Commands wait for the next boundary only; a pause may lie in between."""


class SoloBrain:
    """Telemetry that ends in the job's own rules engine. Training thread only.

    Args:
        register: The registration, as for a collector; its policy and mode are used.
        clock: For the times on commands; no decision depends on it.
        on_commands: Called with the policy's commands.
        on_healthy: Called with the ids of healthy snapshots.

    Raises:
        RuleFileError: The policy has mistakes.
    """

    run_id: str | None = None

    def __init__(
        self,
        register: RunRegister,
        clock: Clock,
        on_commands: Callable[[Iterable[Command]], None],
        on_healthy: Callable[[Sequence[str]], None],
    ) -> None:
        rules = default_rules() if register.policy is None else load_rules(register.policy)
        context = PolicyContext(mode=register.mode or rules.policy.mode)
        self._loaded = LoadedBrain(Brain(rules), context)
        self._brain = self._loaded.brain
        self._clock = clock
        self._on_commands = on_commands
        self._on_healthy = on_healthy
        self._pending: PendingFrames | None = None
        self._markers: list[Marker] = []
        self._commands: dict[str, Command] = {}
        self._start_step = register.start_step
        self._step = register.start_step
        self._attempt_ids = [register.attempt_id]
        for catalog in register.catalogs:
            self._brain.add_catalog(catalog)

    @property
    def plan(self) -> SamplingPlan:
        """The sampling plan."""
        return self._brain.sampling_plan

    def start(self) -> None:
        """Begin the first attempt."""
        self._take(self._brain.begin_attempt(1, self._start_step, MarkerKind.RESUME))

    def put(self, frames: PendingFrames) -> None:
        """Evaluate the step before; its values have arrived by now."""
        before, self._pending = self._pending, frames
        if before is not None:
            self._evaluate(before)

    def marker(self, marker: Marker) -> None:
        """Show the rules an event, before the next frame at or after its step."""
        self._markers.append(marker)

    def set_snapshots(self, infos: Sequence[SnapshotInfo]) -> None:
        """Replace the inventory of snapshots."""
        self._brain.set_snapshots(infos)

    def begin_attempt(self, attempt_id: str, start: AttemptStart) -> None:
        """Begin the next attempt; pending frames of the abandoned branch are dropped."""
        self._pending = None
        for marker in self._markers:
            self._brain.marker(marker)
        self._markers.clear()
        self._loaded.seen.clear()
        self._attempt_ids.append(attempt_id)
        number = len(self._attempt_ids)
        self._take(self._brain.begin_attempt(number, start.from_step, start.reason))

    def result(self, result: CommandResult) -> None:
        """Process the result of a command."""
        command = self._commands.get(result.command_id)
        if command is not None:
            self._change(command, CommandState(result.state), result)

    def set_state(self, state: RunState, step: int, message: str = "") -> None:
        """Log the state."""
        logger.info("the job is %s at step %d %s", state, step, message)

    def close(self, state: RunState, timeout_seconds: float = 5.0) -> None:
        """Evaluate the last step, and close alerts and the incident."""
        del state, timeout_seconds
        if self._pending is not None:
            self._evaluate(self._pending)
            self._pending = None
        self._take(self._brain.end_run(self._step))

    def _evaluate(self, frames: PendingFrames) -> None:
        blocks = []
        for catalog, block in frames.blocks():
            self._brain.add_catalog(catalog)
            blocks.append(block)
            self._step = max([self._step, *block.steps.tolist()])
        markers, self._markers = self._markers, []
        context = self._loaded.context
        self._loaded.show(blocks, markers, lambda _step: context, self._take)
        self._on_healthy(self._brain.healthy_snapshots)

    def _take(self, outcome: Outcome) -> None:
        for alert in outcome.alerts:
            logger.info("step %d: %s %s", alert.step, alert.key.rule, alert.state)
        for key in outcome.cancellations:
            command = self._commands.get(key)
            if command is not None and not command.is_settled:
                self._change(command, CommandState.CANCELLED, None)
        for intent in outcome.commands:
            self._issue(intent)

    def _issue(self, intent: CommandIntent) -> None:
        command = intent.command(_RUN_ID, self._clock.now(), _TIME_TO_LIVE)
        attempt_id = self._attempt_ids[intent.attempt - 1]
        command = command.model_copy(update={"attempt_id": attempt_id})
        self._commands[command.id] = command
        if intent.proposed:
            what = "proposed only; mode auto carries it out"
        elif isinstance(command.parameters, PauseParameters):
            what = (
                "not carried out: a paused job without a collector could not be resumed; look at it"
            )
        else:
            what = "carried out next"
        logger.warning(
            "step %d: %s: %s (%s)", intent.issued_step, command.kind, intent.message, what
        )
        self._take(self._brain.command_changed(command))
        if intent.proposed:
            return
        if isinstance(command.parameters, PauseParameters):
            self._refuse_pause(command)
        else:
            self._on_commands([command])

    def _refuse_pause(self, command: Command) -> None:
        """Reject a pause: a job without a collector could not be resumed."""
        message = "a paused job without a collector could not be resumed"
        refusal = CommandResult(
            command_id=command.id,
            state=CommandState.REJECTED,
            reason=RejectReason.UNSUPPORTED,
            message=message,
        )
        self._change(command, CommandState.REJECTED, refusal)

    def _change(self, command: Command, state: CommandState, result: CommandResult | None) -> None:
        changed = command.model_copy(
            update={"state": state, "result": result, "settled_at": self._clock.now()}
        )
        self._commands[command.id] = changed
        self._take(self._brain.command_changed(changed))
