"""Adam's moments of another time than the weights, as after a resume from two checkpoints."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from stabilizer.errors import ConfigurationError
from trainer.faults.step_fault import StepFault

_Moments: TypeAlias = dict[Tensor, dict[str, Tensor]]
"""Of one optimizer, by parameter and name."""


class StaleMoments(StepFault):
    """After `step` completed steps the moments become those of `age` steps before.

    The weights stay, and so does the optimizer's count. The copy is held on the host meanwhile.
    """

    name = "stale_moments"

    def __init__(self, *, step: int, age: int = 50) -> None:
        """Say when and how old.

        Args:
            step: Completed optimizer steps after which it happens.
            age: Steps by which the moments are too old; fewer than `step`.

        Raises:
            ValueError: A number cannot be used.
        """
        super().__init__(step)
        if not 1 <= age < step:
            raise ValueError(f"{self.name}: age is {age}; allowed: 1 to {step - 1}")
        self._age = age
        self._kept_at = 0
        self._kept: list[_Moments] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start anew."""
        super().setup(trainer, pl_module, stage)
        self._kept = []

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the moments when they are young, and bring them back when they are old."""
        now = trainer.global_step
        if not self.fired and not self._kept and self.step - self._age <= now < self.step:
            self._kept_at = now
            self._kept = [_copy(optimizer) for optimizer in trainer.optimizers]
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    @override
    @torch.no_grad()
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Put the old moments in the place of the new ones.

        Raises:
            ConfigurationError: The optimizers keep none.
        """
        kept, self._kept = self._kept, []
        count = 0
        for optimizer, moments in zip(trainer.optimizers, kept, strict=False):
            for parameter, values in moments.items():
                for name, old in values.items():
                    optimizer.state[parameter][name].copy_(old)
                    count += 1
        if not count:
            raise ConfigurationError(f"faults.{self.name}: the optimizers keep no moments")
        return f"{count} moments of the optimizer are those of step {self._kept_at}"


def _copy(optimizer: Optimizer) -> _Moments:
    """Copy to the host all tensors of the state but the counts of steps."""
    return {
        parameter: {
            name: value.detach().to("cpu", copy=True)
            for name, value in state.items()
            if isinstance(value, Tensor) and name != "step"
        }
        for parameter, state in optimizer.state.items()
    }
