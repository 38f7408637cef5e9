"""A learning rate that is too high from some step on: "keep calm and lower your learning rate"."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from trainer.faults.step_fault import StepFault


class LrTooHigh(StepFault):
    """After `step` completed steps every rate is multiplied, that of this step included.

    The schedule goes on in its shape. A job without a schedule keeps the multiplied rate. What it
    broke is state of optimizer and scheduler, so restoring them undoes it.
    """

    name = "lr_too_high"

    def __init__(self, *, step: int, factor: float = 30.0) -> None:
        """Say when and how high.

        Args:
            step: Completed optimizer steps after which it happens.
            factor: Multiplier on the rates.

        Raises:
            ValueError: The step is below 1, or the factor not above 0.
        """
        super().__init__(step)
        if not factor > 0:
            raise ValueError(f"{self.name}: factor is {factor}; allowed: above 0")
        self._factor = factor

    @override
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Multiply what the schedules start from, and what is in force."""
        for config in trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if isinstance(scheduler, LRScheduler) and hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [rate * self._factor for rate in scheduler.base_lrs]
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * self._factor
                if "initial_lr" in group:
                    group["initial_lr"] = group["initial_lr"] * self._factor
        return f"learning rate {self._factor:g} times too high"
