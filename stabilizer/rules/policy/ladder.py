"""The ladder: turns the next rung into a command."""

from __future__ import annotations

from dataclasses import dataclass

from stabilizer.protocol.batches import SnapshotInfo
from stabilizer.protocol.commands import (
    CommandParameters,
    PauseParameters,
    ReduceLrParameters,
    RollbackParameters,
    SnapshotTarget,
)
from stabilizer.rules.policy.lineage import Lineage
from stabilizer.rules.spec import ReduceLrRung, RungSpec


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


class Ladder:
    """The rungs of a policy; a pause follows the last one."""

    def __init__(self, rungs: tuple[RungSpec, ...]) -> None:
        self._rungs = rungs

    def plan(self, rung: int, first_step: int, lineage: Lineage, *, needs_rollback: bool) -> Plan:
        """Plan the rung, or the next one that can be carried out.

        Args:
            rung: Index of the rung that is due, from 0.
            first_step: Step of the first sign of the incident.
            lineage: Knows the healthy snapshots.
            needs_rollback: The weights may be corrupt: a cut alone would not help.
        """
        missing: list[int] = []
        for index in range(rung, len(self._rungs)):
            spec = self._rungs[index]
            if spec.pause:
                return _pause(index, missing)
            if spec.rollback is not None:
                target = lineage.target(first_step - spec.rollback.margin)
                if target is not None:
                    return _rollback(index, spec, target, missing)
                missing.append(index)
            if spec.reduce_lr is not None and not needs_rollback:
                return _cut(index, spec.reduce_lr, missing)
        return _pause(len(self._rungs), missing)


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


def _rollback(index: int, spec: RungSpec, target: SnapshotInfo, missing: list[int]) -> Plan:
    skip = 0 if spec.rollback is None else spec.rollback.skip
    parameters = RollbackParameters(
        target=SnapshotTarget(snapshot_id=target.id, attempt=target.attempt, step=target.step),
        skip_steps=skip,
        reduce_lr=None if spec.reduce_lr is None else _cut_parameters(spec.reduce_lr),
    )
    text = f"roll back to step {target.step}"
    text += f", skip the data of {skip} steps" if skip else ""
    text += f", {_cut_text(spec.reduce_lr)}" if spec.reduce_lr is not None else ""
    return Plan(index, parameters, text, tuple(missing))
