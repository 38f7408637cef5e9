"""A resume that loads everything but the weights of a part of the model."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from typing_extensions import override

from trainer.faults.targets import find_parameters

_log = logging.getLogger(__name__)


class FreshWeights(Callback):
    """When the job resumes from a checkpoint, a module has its first weights, not those loaded.

    Optimizer, schedule and data go on as if nothing had happened. The first weights are those the
    module has when `fit` begins; a copy is held on the host until training starts.
    """

    name = "fresh_weights"

    def __init__(self, *, module: str = "") -> None:
        """Say where.

        Args:
            module: Dotted name, or its end if only one module has that; empty: the whole model.
        """
        self._module = module
        self._first: list[Tensor] = []
        self._is_resumed = False
        self.fired = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the first weights; Lightning loads a checkpoint behind this hook.

        Raises:
            ConfigurationError: There is no such module.
        """
        self.fired = self._is_resumed = False
        if stage == "fit":
            parameters = self._parameters(pl_module)
            self._first = [parameter.detach().to("cpu", copy=True) for parameter in parameters]

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note that the job is resumed; nothing is loaded in a job that starts anew."""
        self._is_resumed = True

    @override
    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the first weights back if the job was resumed."""
        first, self._first = self._first, []
        if not self._is_resumed:
            return
        for parameter, value in zip(self._parameters(pl_module), first, strict=True):
            if isinstance(parameter, DTensor):  # sharded since
                mesh, placements = parameter.device_mesh, parameter.placements
                parameter.copy_(distribute_tensor(value, mesh, placements))
            else:
                parameter.copy_(value)
        self.fired = True
        _log.warning(
            "fault %s at step %d: weights of %s were not loaded",
            self.name,
            trainer.global_step,
            self._module or "the model",
        )

    def _parameters(self, module: LightningModule) -> list[nn.Parameter]:
        return find_parameters(module, self._module, f"faults.{self.name}.module")
