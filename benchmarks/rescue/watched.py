"""A job of the laboratory under the agent: solo mode, in process, acting by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from benchmarks.lab.corpora import SOURCES
from benchmarks.lab.members import State
from benchmarks.lab.oracle import SNAPSHOT_EVERY
from benchmarks.lab.training import SingleRun, World
from stabilizer.agent.control.agreement import SingleProcess
from stabilizer.agent.control.snapshots import Snapshot
from stabilizer.agent.integrations.job import Job, JobSubject
from stabilizer.agent.integrations.settings import JobSettings
from stabilizer.clock import SystemClock
from stabilizer.errors import ControlError
from stabilizer.protocol.batches import SnapshotInfo
from stabilizer.protocol.decisions import Mode

KEPT: Final = 8
"""Snapshots in the ring."""


class WatchedJob(SingleRun):
    """A plain training loop that calls the agent where an integration does.

    Args:
        world: The job.
        state: Where it begins: before its first step.
        policy: A rule file; None for the rules that ship.
    """

    def __init__(self, world: World, state: State, policy: Path | None = None) -> None:
        super().__init__(world, state)
        self._optimizer = RowOptimizer(world, super()._update)
        self._commands = JobCommands(self)
        settings = JobSettings(
            url=None,
            run=world.setting.name,
            mode=Mode.AUTO,
            policy=policy,
            snapshot_every=SNAPSHOT_EVERY,
            keep_snapshots=KEPT,
            snapshot_bytes=2**30,
        )
        self._job = Job(settings, SystemClock())
        self._cuts = 0
        self._job.start(
            JobSubject(
                model=world.model,
                optimizers=[self._optimizer],
                groups=["0"],
                training=self._commands,
                agreement=SingleProcess(),
                take_snapshot=self._take_snapshot,
                global_batch=world.batch,
            )
        )

    @property
    def interventions(self) -> int:
        """Cuts and rollbacks so far."""
        return self._cuts + self._commands.restored

    def advance(self) -> int:
        """Train a step, or the step again that a rollback leads to; return the step it is at."""
        cuts = len(self._job.override.cuts)
        self._job.boundary()
        self._cuts += max(0, len(self._job.override.cuts) - cuts)
        step = self.members[0].step + 1
        self._job.begin_step(step)
        result = self.step(self._before_optimizer)
        losses, sources = result.losses[0], torch.from_numpy(result.sources[0])
        for number, name in enumerate(SOURCES):
            own = losses[sources == number]
            if own.numel():
                self._job.log("loss", own.mean(), source=name)
        if self.world.setting.precision != "fp32":
            self._job.log("loss_scale", result.scales[0])
            self._job.log("step_skipped", float(result.skipped[0]))
        self._job.log_loss(losses.mean())
        self._job.end_step(step)
        return step

    def finish(self) -> None:
        """End the job."""
        self._job.finish(self.members[0].step)

    def _before_optimizer(self) -> None:
        parameters = self.world.model.parameters()
        self._job.before_optimizer_step(self._optimizer, parameters, is_first=True)

    @override
    def _update(self, rates: list[float], skipped: Tensor) -> None:
        if not skipped[0]:  # a loss scaler does not call the optimizer
            self._optimizer.param_groups[0]["lr"] = rates[0]
            self._optimizer.step()

    def _take_snapshot(self, name: str, attempt: int) -> Snapshot:
        state = self.state()
        finite = bool(state.weights.isfinite().all())
        info = SnapshotInfo(
            id=name,
            attempt=attempt,
            step=state.member.step,
            finite=finite,
            samples=state.member.position,
            num_bytes=4 * state.weights.numel() * (1 + len(state.moments.rows)) if finite else 0,
        )
        return Snapshot(info, state if finite else None)


class RowOptimizer(Optimizer):
    """The optimizer of a row, as torch's, so that the agent's hooks are on its steps."""

    def __init__(self, world: World, update: Callable[[list[float], Tensor], None]) -> None:
        super().__init__(world.model.parameters(), {"lr": 0.0})
        self._update = update

    @override
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closures here
        self._update([self.param_groups[0]["lr"]], torch.zeros(1, dtype=torch.bool))


class JobCommands:
    """What the agent's commands do to the job."""

    unsupported = None
    is_ending = False

    def __init__(self, run: SingleRun) -> None:
        self.restored = 0
        self._run = run

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return self._run.members[0].step

    @property
    def samples(self) -> int:
        """Position in the stream."""
        return self._run.members[0].position

    def check(self, snapshot: Snapshot) -> None:
        """Accept every snapshot of the ring."""

    def restore(self, snapshot: Snapshot, skip_steps: int) -> int:
        """Restore, and skip data; a change that has struck does not strike again."""
        state: State = snapshot.state
        skipped = skip_steps * self._run.world.batch
        self._run.load(state)
        self._run.members[0].struck = True
        self._run.members[0].position += skipped
        self.restored += 1
        return skipped

    def stop(self) -> None:
        """Nothing: the benchmark goes on to the end."""

    def save_checkpoint(self, name: str) -> str:
        """Refuse.

        Raises:
            ControlError: Always.
        """
        raise ControlError(f"{name}: these jobs have no durable checkpoints")
