"""A learning-rate schedule that restarts from its warm-up, too high.

It happened twice in the IDEFICS-80B run: a resume silently restarted the schedule, and the loss
blew up some hundred steps on (huggingface/m4-logs, tr-190-80b/chronicles.md, 2023-06-07, 06-08).
"""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from stabilizer.errors import ConfigurationError
from trainer.faults.step_fault import StepFault


class LrRestart(StepFault):
    """After `step` completed steps every schedule's clock goes to 0, its peak rates up by a factor.

    Works with every scheduler that keeps `base_lrs` and `last_epoch`, as torch's do. What it broke
    is scheduler state, so restoring that state undoes it.
    """

    name = "lr_restart"

    def __init__(self, *, step: int, factor: float) -> None:
        """Say when and how high.

        Args:
            step: Completed optimizer steps after which it happens; never, when a job resumes later.
            factor: Multiplier on the peak rates.

        Raises:
            ValueError: The step is below 1, or the factor not above 0.
        """
        super().__init__(step)
        if not factor > 0:
            raise ValueError(f"{self.name}: factor is {factor}; allowed: above 0")
        self._factor = factor

    @override
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Restart the schedules.

        Raises:
            ConfigurationError: The job has no scheduler that could restart.
        """
        configs = trainer.lr_scheduler_configs
        if not configs:
            raise ConfigurationError("faults.lr_restart: the job has no learning-rate schedule")
        for config in configs:
            restart(config.scheduler, self._factor)
        return f"learning-rate schedule restarted {self._factor:g} times too high"


def restart(scheduler: object, factor: float) -> None:
    """Set a scheduler's clock to 0 and multiply its peak rates, those in force included.

    Raises:
        ConfigurationError: It is no scheduler with base rates and a clock.
    """
    if not isinstance(scheduler, LRScheduler) or not hasattr(scheduler, "base_lrs"):
        kind = type(scheduler).__name__
        raise ConfigurationError(f"faults.lr_restart: {kind} has no clock that could restart")
    scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
        group["initial_lr"] = rate  # from which recursive schedules start
    scheduler.last_epoch = -1
    scheduler.step()
