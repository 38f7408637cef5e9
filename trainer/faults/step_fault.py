"""What all accidents of the process have in common: they happen once, at a step."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

_log = logging.getLogger(__name__)


class StepFault(Callback):
    """An accident between two optimizer steps, after `step` completed ones.

    It happens once, not again when a rollback passes the step a second time; for that reason
    nothing of it is in the callback's saved state. What it broke is state of the job, so going back
    to a snapshot or checkpoint from before undoes it. A job that resumes behind the step is spared.

    A plain callback: `Trainer(callbacks=[SomeFault(step=100)])` strikes any Lightning job. Put it
    in front of whatever watches the job.
    """

    name = "fault"
    """As in the configuration; begins every message."""

    def __init__(self, step: int) -> None:
        """Say when.

        Raises:
            ValueError: The step is below 1.
        """
        if step < 1:
            raise ValueError(f"{self.name}: step is {step}; allowed: 1 or more completed steps")
        self.step = step
        self.fired = False

    @abstractmethod
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Do it; return what was done, for the log.

        Raises:
            ConfigurationError: The job has nothing that this could happen to.
        """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start anew: another `fit` is another process's life."""
        self.fired = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Spare a job that resumes behind the step."""
        self.fired = trainer.global_step > self.step

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Strike if this is the first microbatch after the step."""
        if not self.fired and trainer.global_step >= self.step:
            self.fired = True
            done = self.strike(trainer, pl_module)
            _log.warning("fault %s after step %d: %s", self.name, trainer.global_step, done)


class PassingFault(StepFault):
    """An accident that goes on for some steps, and ends early when the job is rewound.

    `strike` begins it and `cease` ends it.
    """

    def __init__(self, step: int, steps: int | None) -> None:
        """Say when, and for how many steps; None: until the job is rewound or ends.

        Raises:
            ValueError: A number is below 1.
        """
        super().__init__(step)
        if steps is not None and steps < 1:
            raise ValueError(f"{self.name}: steps is {steps}; allowed: 1 or more")
        self.steps = steps
        self._newest_step = 0
        self.is_active = False

    @abstractmethod
    def cease(self) -> None:
        """End it; called once after each `strike`."""

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin or end it."""
        is_over = self.steps is not None and trainer.global_step >= self.step + self.steps
        if self.is_active and (is_over or trainer.global_step < self._newest_step):
            self._end(trainer.global_step)
        self._newest_step = trainer.global_step
        was_fired = self.fired
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.is_active = self.is_active or self.fired != was_fired

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End it with the job."""
        if self.is_active:
            self._end(trainer.global_step)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """End it with the job."""
        if self.is_active:
            self._end(trainer.global_step)

    def _end(self, step: int) -> None:
        self.is_active = False
        self.cease()
        _log.warning("fault %s ends at step %d", self.name, step)
