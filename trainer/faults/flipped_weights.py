"""Bits of weights flip, as in memory that errs silently.

Xid 63 and 64 (rows of GPU memory remapped after an error) came close to several of the IDEFICS-80B
spikes (huggingface/m4-logs, tr-190-80b/chronicles.md).
"""

from __future__ import annotations

from typing import Final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from stabilizer.errors import ConfigurationError
from trainer.faults.step_fault import StepFault
from trainer.faults.targets import find_parameters

_WORDS: Final = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class FlippedWeights(StepFault):
    """After `step` completed steps one bit is flipped in a seeded part of a module's weights."""

    name = "flipped_weights"

    def __init__(
        self, *, step: int, module: str, part: float = 0.5, bit: int = 0, seed: int = 0
    ) -> None:
        """Say when, where, how many and which bit.

        Args:
            step: Completed optimizer steps after which it happens.
            module: Dotted name, or its end if only one module has that; everything below it.
            part: Part of the weights, above 0 and at most 1; at least one weight.
            bit: Counted from the highest: 0 is the sign, 1 the largest power of the exponent.
            seed: Start of the choice of weights.

        Raises:
            ValueError: A number cannot be used.
        """
        super().__init__(step)
        if not 0 < part <= 1 or not 0 <= bit < 16:
            raise ValueError(
                f"{self.name}: part={part}, bit={bit}; allowed: part above 0 and at most 1, bit "
                "from 0 to 15"
            )
        self._module = module
        self._part = part
        self._bit = bit
        self._seed = seed

    @override
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Flip.

        Raises:
            ConfigurationError: There is no such module, or its weights are no floating numbers.
        """
        parameters = find_parameters(module, self._module, f"faults.{self.name}.module")
        generator = torch.Generator().manual_seed(self._seed)
        count = sum(self._flip(parameter, generator) for parameter in parameters)
        return f"bit {self._bit} flipped in {count} weights of {self._module or 'the model'}"

    @torch.no_grad()
    def _flip(self, parameter: Tensor, generator: torch.Generator) -> int:
        word = _WORDS.get(parameter.element_size())
        if word is None or not parameter.is_floating_point():
            raise ConfigurationError(
                f"faults.{self.name}.module: weights of type {parameter.dtype} have no such bit"
            )
        # A rank that holds a part of the weights flips in its own part.
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        count = max(1, round(local.numel() * self._part))
        chosen = torch.randperm(local.numel(), generator=generator)[:count].to(local.device)
        bits = 8 * local.element_size()
        mask = 1 << (bits - 1 - self._bit)
        if mask >= 1 << (bits - 1):
            mask -= 1 << bits  # the sign bit of a signed word
        words = local.view(word).view(-1)
        words[chosen] = words[chosen] ^ mask
        return count
