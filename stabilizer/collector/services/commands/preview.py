"""Previews: what a command would do, shown to the operator before it is issued."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from stabilizer.collector.services.commands.readings import Rates, Readings
from stabilizer.collector.services.commands.targets import check_open, held_snapshot, resolve
from stabilizer.collector.services.unit_of_work import UnitOfWork
from stabilizer.collector.storage.models import CommandRow, RunRow
from stabilizer.collector.storage.repositories import Repositories
from stabilizer.collector.storage.repositories.decisions import UNSETTLED, to_command
from stabilizer.errors import ConflictError
from stabilizer.protocol.batches import SnapshotInfo
from stabilizer.protocol.commands import (
    CommandKind,
    CommandParameters,
    CommandState,
    ReduceLrParameters,
    RollbackParameters,
)
from stabilizer.protocol.runs import Branch, RunState, trace_lineage
from stabilizer.protocol.views import CommandPreview, CommandPreviewRequest, PreviewWarning

_IN_FLIGHT: Final = frozenset({CommandState.PENDING, CommandState.DELIVERED})


@dataclass(slots=True)
class _Scene:
    """The run at the time of a command."""

    run_id: str
    state: RunState
    attempt: int
    step: int
    global_batch: int | None
    parameters: CommandParameters
    snapshot: SnapshotInfo | None = None
    """The target of a rollback."""
    is_healthy: bool = False
    others: list[tuple[str, CommandState]] = field(default_factory=list)
    """The run's other unsettled commands, oldest first."""

    @property
    def skip_steps(self) -> int:
        """Steps' worth of data left out."""
        parameters = self.parameters
        return parameters.skip_steps if isinstance(parameters, RollbackParameters) else 0

    @property
    def cut(self) -> ReduceLrParameters | None:
        """The reduction of the learning rate that is part of the command."""
        if isinstance(self.parameters, RollbackParameters):
            return self.parameters.reduce_lr
        return self.parameters if isinstance(self.parameters, ReduceLrParameters) else None


class PreviewService:
    """Previews commands. Each call is one read: it writes nothing and takes no lock."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow

    def preview(self, run_id: str, request: CommandPreviewRequest) -> CommandPreview:
        """Show what a manual command would do; refused as the command itself would be.

        Raises:
            NotFoundError: There is no such run.
            ConflictError: Codes `past_attempt`, `run_ended`, `unknown_snapshot`,
                `snapshot_not_finite`, `no_healthy_snapshot`.
        """
        with self._uow.reading() as repos:
            run = repos.runs.require(run_id)
            check_open(run, request.attempt)
            return _show(repos, _scene(repos, run, resolve(repos, run, request.parameters)))

    def of_command(self, command_id: str) -> CommandPreview:
        """Show what a stored command would do if it were delivered now.

        Raises:
            NotFoundError: There is no such command.
            ConflictError: As for `preview`; it is settled, code `command_settled`.
        """
        with self._uow.reading() as repos:
            row = repos.commands.require(command_id)
            _check_unsettled(row, self._uow.clock.now())
            run = repos.runs.require(row.run_id)
            check_open(run, row.attempt)
            return _show(repos, _scene(repos, run, to_command(row).parameters, command_id))


def _scene(
    repos: Repositories, run: RunRow, parameters: CommandParameters, command_id: str = ""
) -> _Scene:
    scene = _Scene(
        run_id=run.id,
        state=RunState(run.state),
        attempt=run.attempt,
        step=run.step,
        global_batch=run.global_batch,
        parameters=parameters,
    )
    if isinstance(parameters, RollbackParameters):
        scene.snapshot = held_snapshot(repos, run, parameters.target.snapshot_id)
        scene.is_healthy = scene.snapshot.id in repos.rules.healthy_snapshots(run.id)
    rows = repos.commands.of_run(run.id, UNSETTLED)
    scene.others = [(row.id, CommandState(row.state)) for row in rows if row.id != command_id]
    return scene


def _show(repos: Repositories, scene: _Scene) -> CommandPreview:
    attempts = repos.attempts.of_run(scene.run_id)
    branches = {branch.attempt: branch for branch in trace_lineage(attempts)}
    readings = Readings(repos, scene.run_id, branches)
    now = readings.rates_now()
    target = scene.snapshot
    at_target = None if target is None else readings.rates_at(target.step)
    seconds = readings.step_seconds()
    after = _rates_after(scene, now, at_target)
    steps_lost = 0 if target is None else max(0, scene.step - target.step)
    return CommandPreview(
        parameters=scene.parameters,
        attempt=scene.attempt,
        step=scene.step,
        steps_lost=steps_lost,
        seconds_lost=None if seconds is None else steps_lost * seconds,
        skip_steps=scene.skip_steps,
        skipped_samples=_skipped_samples(scene),
        skip_from_sample=None if target is None else target.samples,
        target_healthy=None if target is None else scene.is_healthy,
        lr_scale_before=now.scale,
        lr_scale_after=after.scale,
        lr=dict(now.lr),
        lr_after=dict(after.lr),
        unsettled=tuple(command_id for command_id, _ in scene.others),
        warnings=tuple(_warnings(scene, branches)),
    )


def _check_unsettled(row: CommandRow, now: datetime) -> None:
    state = CommandState(row.state)
    is_over = state is CommandState.PROPOSED and row.expires_at <= now
    if state not in UNSETTLED or is_over:
        shown = CommandState.EXPIRED if is_over else state
        raise ConflictError(
            f"command {row.id} is {shown.value}: it has no effect any more",
            code="command_settled",
        )


def _rates_after(scene: _Scene, now: Rates, at_target: Rates | None) -> Rates:
    factor = 1.0 if scene.cut is None else scene.cut.factor
    scale = None if now.scale is None else now.scale * factor
    if at_target is None or not at_target.lr:
        return Rates({group: rate * factor for group, rate in now.lr.items()}, scale)
    # The rollback restores the scheduler; the reductions in force are applied again.
    if scale is not None and at_target.scale:
        factor = scale / at_target.scale
    return Rates({group: rate * factor for group, rate in at_target.lr.items()}, scale)


def _skipped_samples(scene: _Scene) -> int | None:
    if scene.snapshot is None:
        return None
    if scene.skip_steps == 0:
        return 0
    return None if scene.global_batch is None else scene.skip_steps * scene.global_batch


def _warnings(scene: _Scene, branches: dict[int, Branch]) -> Iterator[PreviewWarning]:
    """Yield warnings for the operator, the most important first."""
    kind, target = scene.parameters.kind, scene.snapshot
    if target is not None and not scene.is_healthy:
        yield PreviewWarning.TARGET_NOT_HEALTHY
    if target is not None and not _is_live(target, branches):
        yield PreviewWarning.TARGET_ABANDONED
    if scene.state is RunState.LOST:
        yield PreviewWarning.RUN_NOT_REPORTING
    ends_pause = kind in (CommandKind.RESUME, CommandKind.STOP)
    if scene.state is RunState.PAUSED and not ends_pause:
        yield PreviewWarning.RUN_PAUSED
    if scene.state is RunState.RUNNING and kind is CommandKind.RESUME:
        yield PreviewWarning.RUN_NOT_PAUSED
    if any(state in _IN_FLIGHT for _, state in scene.others):
        yield PreviewWarning.OTHER_COMMAND_IN_FLIGHT
    if any(state is CommandState.PROPOSED for _, state in scene.others):
        yield PreviewWarning.COMMAND_PROPOSED
    if scene.skip_steps and scene.global_batch is None:
        yield PreviewWarning.GLOBAL_BATCH_UNKNOWN


def _is_live(target: SnapshotInfo, branches: dict[int, Branch]) -> bool:
    branch = branches.get(target.attempt)
    return branch is not None and branch.is_live(target.step)
