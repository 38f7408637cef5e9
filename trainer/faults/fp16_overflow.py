"""Activations leave the range of fp16: beyond 65504 there is only infinity."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from trainer.faults.step_fault import PassingFault
from trainer.faults.targets import find_module


class Fp16Overflow(PassingFault):
    """For some steps a module's output is too large by a factor and goes through fp16.

    With a loss scaler (precision fp16) such a step is left out and the scale is halved; without one
    the infinities go into the weights. The output keeps its number format, so this happens in any
    precision.
    """

    name = "fp16_overflow"

    def __init__(self, *, step: int, module: str, factor: float = 1e6, steps: int = 1) -> None:
        """Say when, where, how large and how long.

        Args:
            step: Completed optimizer steps after which it begins.
            module: Dotted name of a module that gives one tensor, or its end.
            factor: Multiplier on the output.
            steps: How long it goes on.

        Raises:
            ValueError: A number of steps is below 1.
        """
        super().__init__(step, steps)
        self._module = module
        self._factor = factor
        self._hook: RemovableHandle | None = None

    @override
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Begin.

        Raises:
            ConfigurationError: There is no such module.
        """
        target = find_module(module, self._module, f"faults.{self.name}.module")
        self._hook = target.register_forward_hook(self._overflow)
        return f"output of {self._module} multiplied by {self._factor:g}, in fp16"

    @override
    def cease(self) -> None:
        """Leave the module as it was."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _overflow(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        del module, inputs
        return (output.float() * self._factor).to(torch.float16).to(output.dtype)
