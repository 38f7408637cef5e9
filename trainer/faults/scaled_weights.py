"""Weights of a named layer become too large, as after a wrong load or a broken all-reduce."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from trainer.faults.step_fault import StepFault
from trainer.faults.targets import find_parameters


class ScaledWeights(StepFault):
    """After `step` completed steps the weights of a module are multiplied."""

    name = "scaled_weights"

    def __init__(self, *, step: int, module: str, factor: float = 30.0) -> None:
        """Say when, where and how much.

        Args:
            step: Completed optimizer steps after which it happens.
            module: Dotted name, or its end if only one module has that; everything below it.
            factor: Multiplier on the weights.

        Raises:
            ValueError: The step is below 1.
        """
        super().__init__(step)
        self._module = module
        self._factor = factor

    @override
    @torch.no_grad()
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Multiply.

        Raises:
            ConfigurationError: There is no such module.
        """
        for parameter in find_parameters(module, self._module, f"faults.{self.name}.module"):
            parameter.mul_(self._factor)
        return f"weights of {self._module or 'the model'} multiplied by {self._factor:g}"
