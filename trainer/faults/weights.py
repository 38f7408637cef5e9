"""Weights that are wrong: scaled, with flipped bits, or not loaded on a resume."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

from pydantic import Field
from pydantic.dataclasses import dataclass
from typing_extensions import override

from stabilizer.errors import ConfigurationError
from trainer.faults.base import SETTINGS, FaultCallback, StepFault, find_parameters

if TYPE_CHECKING:
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor, nn

_BOTTOM_FC2: Final = "model.layers.0.mlp.down_proj"
"""An outer projection in the bottom layer: where instabilities are seen first (IDEFICS talk)."""
_WORDS: Final = {2: "int16", 4: "int32", 8: "int64"}
"""Bytes of a weight to the type of torch that holds its bits."""
_log = logging.getLogger(__name__)


@dataclass(kw_only=True, config=SETTINGS)
class ScaledWeights(StepFault):
    """The weights of a module are multiplied, as after a wrong load or a broken all-reduce."""

    name: ClassVar[str] = "scaled_weights"

    module: str = _BOTTOM_FC2
    """Dotted name, or its end if only one module has that; everything below it."""
    factor: Annotated[float, Field(ge=-1e9, le=1e9)] = 30.0
    """Multiplier on the weights; 0 and below are allowed."""

    @override
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Multiply.

        Raises:
            ConfigurationError: There is no such module.
        """
        for parameter in find_parameters(module, self.module, f"faults.{self.name}.module"):
            parameter.mul_(self.factor)
        return f"weights of {self.module or 'the model'} multiplied by {self.factor:g}"


@dataclass(kw_only=True, config=SETTINGS)
class FlippedWeights(StepFault):
    """One bit is flipped in a seeded part of a module's weights, as by faulty memory.

    Xid 63 and 64 (rows of GPU memory remapped after an error) came close to several of the
    IDEFICS-80B spikes (huggingface/m4-logs, tr-190-80b/chronicles.md).
    """

    name: ClassVar[str] = "flipped_weights"

    module: str = "lm_head"
    """Dotted name, or its end if only one module has that; everything below it."""
    part: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Part of the weights, above 0 and at most 1; at least one weight."""
    bit: Annotated[int, Field(ge=0, le=15)] = 0
    """Counted from the highest: 0 is the sign, 1 the largest power of the exponent."""
    seed: int | None = None
    """Seed of the choice of weights; null: training.seed."""

    @override
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Flip.

        Raises:
            ConfigurationError: There is no such module, or its weights are not floating-point.
        """
        import torch  # noqa: PLC0415  not for the configuration alone

        parameters = find_parameters(module, self.module, f"faults.{self.name}.module")
        generator = torch.Generator().manual_seed(self.seed or 0)
        count = sum(self._flip(parameter, generator) for parameter in parameters)
        return f"bit {self.bit} flipped in {count} weights of {self.module or 'the model'}"

    def _flip(self, parameter: Tensor, generator: torch.Generator) -> int:
        import torch  # noqa: PLC0415  not for the configuration alone

        word = _WORDS.get(parameter.element_size())
        if word is None or not parameter.is_floating_point():
            raise ConfigurationError(
                f"faults.{self.name}.module: weights of type {parameter.dtype} have no such bit"
            )
        # A rank that holds a part of the weights flips in its own part.
        local = parameter.detach()
        local = local.to_local() if hasattr(local, "to_local") else local
        count = max(1, round(local.numel() * self.part))
        chosen = torch.randperm(local.numel(), generator=generator)[:count].to(local.device)
        bits = 8 * local.element_size()
        mask = 1 << (bits - 1 - self.bit)
        if mask >= 1 << (bits - 1):
            mask -= 1 << bits  # the sign bit of a signed word
        words = local.view(getattr(torch, word)).view(-1)
        words[chosen] = words[chosen] ^ mask
        return count


@dataclass(kw_only=True, config=SETTINGS)
class FreshWeights(FaultCallback):
    """When the run resumes from a checkpoint, a module starts with fresh weights.

    Optimizer, schedule and data are restored. The fresh weights are those that the module has when
    `fit` begins; a copy is held on the host until training starts.
    """

    name: ClassVar[str] = "fresh_weights"

    module: str = ""
    """Dotted name, or its end if only one module has that; empty: the whole model."""

    def __post_init__(self) -> None:
        """Start as not yet fired."""
        self._first: list[Tensor] = []
        self._is_resumed = False
        self.fired = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the first weights; Lightning loads a checkpoint after this hook.

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
        """Note that the job is resumed; a job that starts from scratch loads nothing."""
        self._is_resumed = True

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the first weights if the job was resumed."""
        first, self._first = self._first, []
        if not self._is_resumed:
            return
        import torch  # noqa: PLC0415  not for the configuration alone

        with torch.no_grad():
            for parameter, value in zip(self._parameters(pl_module), first, strict=True):
                _restore(parameter, value)
        self.fired = True
        _log.warning(
            "fault %s at step %d: weights of %s were not loaded",
            self.name,
            trainer.global_step,
            self.module or "the model",
        )

    def _parameters(self, module: LightningModule) -> list[nn.Parameter]:
        return find_parameters(module, self.module, f"faults.{self.name}.module")


def _restore(parameter: nn.Parameter, value: Tensor) -> None:
    from torch.distributed.tensor import DTensor, distribute_tensor  # noqa: PLC0415  loads torch

    if isinstance(parameter, DTensor):  # sharded since
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
    parameter.copy_(value)
