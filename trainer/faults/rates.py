"""Learning rates that are too high: multiplied from a step on, or from a restarted schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic.dataclasses import dataclass
from typing_extensions import override

from stabilizer.errors import ConfigurationError
from trainer.faults.base import SETTINGS, Factor, StepFault

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


@dataclass(kw_only=True, config=SETTINGS)
class LrTooHigh(StepFault):
    """The learning rate is too high from a step on.

    After `step` completed steps every rate is multiplied, that of this step included. The schedule
    keeps its shape. A job without a schedule keeps the multiplied rate. The fault changes state of
    optimizer and scheduler, so restoring them undoes it.
    """

    name: ClassVar[str] = "lr_too_high"

    factor: Factor = 30.0
    """Multiplier on the rates."""

    @override
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Multiply the base rates of the schedules, and the current rates."""
        from torch.optim.lr_scheduler import LRScheduler  # noqa: PLC0415  loads torch

        for config in trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if isinstance(scheduler, LRScheduler) and hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [rate * self.factor for rate in scheduler.base_lrs]
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * self.factor
                if "initial_lr" in group:
                    group["initial_lr"] = group["initial_lr"] * self.factor
        return f"learning rate {self.factor:g} times too high"


@dataclass(kw_only=True, config=SETTINGS)
class LrRestart(StepFault):
    """The schedule restarts from its warm-up, too high.

    After `step` completed steps every schedule's clock is set to 0 and its peak rates are
    multiplied. Works with every scheduler that keeps `base_lrs` and `last_epoch`, as torch's do.
    The fault changes scheduler state, so restoring that state undoes it.

    It happened twice in the IDEFICS-80B run: a resume silently restarted the schedule, and the loss
    blew up some hundred steps later (huggingface/m4-logs, tr-190-80b/chronicles.md, 2023-06-07 and
    06-08).
    """

    name: ClassVar[str] = "lr_restart"

    factor: Factor = 30.0
    """Multiplier on the peak rates of the schedule."""

    @override
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Restart the schedules.

        Raises:
            ConfigurationError: The job has no scheduler that can restart.
        """
        configs = trainer.lr_scheduler_configs
        if not configs:
            raise ConfigurationError("faults.lr_restart: the job has no learning-rate schedule")
        for config in configs:
            restart(config.scheduler, self.factor)
        return f"learning-rate schedule restarted {self.factor:g} times too high"


def restart(scheduler: object, factor: float) -> None:
    """Set a scheduler's clock to 0 and multiply its peak rates, the current ones included.

    Raises:
        ConfigurationError: The scheduler has no base rates or no clock.
    """
    from torch.optim.lr_scheduler import LRScheduler  # noqa: PLC0415  loads torch

    if not isinstance(scheduler, LRScheduler) or not hasattr(scheduler, "base_lrs"):
        kind = type(scheduler).__name__
        raise ConfigurationError(f"faults.lr_restart: {kind} has no clock that could restart")
    scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
        group["initial_lr"] = rate  # from which recursive schedules start
    scheduler.last_epoch = -1
    scheduler.step()
