"""Logits drift away from zero, where bf16 rounds badly.

A constant added to all logits changes no probability, so nothing but z-loss holds them back; but
bf16 has 8 bits, so that near 256 its steps are 2 and near 1024 they are 8 (z-loss: PaLM,
arXiv:2204.02311; the IDEFICS talk).
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from trainer.faults.step_fault import PassingFault
from trainer.faults.targets import find_module


class LogitDrift(PassingFault):
    """From `step` on the output of the head gains `per_step` more at each step, rounded to bf16.

    The output keeps its number format, so this shows in an fp32 job as well. It is no state of the
    job: it ends when the job is rewound, or after `steps`.
    """

    name = "logit_drift"

    def __init__(
        self,
        *,
        step: int,
        per_step: float = 16.0,
        steps: int | None = None,
        head: str = "lm_head",
    ) -> None:
        """Say when, how fast, how long and where.

        Args:
            step: Completed optimizer steps after which it begins.
            per_step: What is added to every logit, more at each step.
            steps: How long it goes on; None: until the job is rewound or ends.
            head: Dotted name of the module that makes the logits, or its end.

        Raises:
            ValueError: A number of steps is below 1.
        """
        super().__init__(step, steps)
        self._per_step = per_step
        self._head = head
        self._offset = 0.0
        self._hook: RemovableHandle | None = None

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin or end it; drift on."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._offset = self._per_step * (trainer.global_step - self.step + 1)

    @override
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Begin.

        Raises:
            ConfigurationError: There is no such head.
        """
        head = find_module(module, self._head, f"faults.{self.name}.head")
        self._hook = head.register_forward_hook(self._drift)
        return f"logits drift by {self._per_step:g} per step, rounded to bf16"

    @override
    def cease(self) -> None:
        """Leave the head as it was."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _drift(self, head: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> Tensor:
        del head, inputs
        return (logits + self._offset).to(torch.bfloat16).to(logits.dtype)
