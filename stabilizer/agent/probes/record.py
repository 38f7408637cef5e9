"""What has been measured in the step that is under way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stabilizer.agent.probes.readings import (
    AttentionSummaries,
    GradientNorms,
    Mean,
    RootMeanSquare,
)
from stabilizer.agent.probes.vector import Reading, Slot

AttentionSlots = tuple[Slot, Slot, Slot]
"""Slots of the worst head's entropy, the mean entropy and the largest logit."""


@dataclass(slots=True)
class _Given:
    parts: list[int] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Norms:
    parts: list[int] = field(default_factory=list)
    elements: list[int] = field(default_factory=list)


class StepRecord:
    """Small tensors of one step on their devices, and how its series follow from them.

    Nothing is computed here and nothing waits; a tensor handed in must not change afterwards.
    """

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self._norms: dict[Slot, _Norms] = {}
        self._measured: dict[Slot, _Given] = {}
        self._logged: dict[Slot, _Given] = {}
        self._attention: dict[AttentionSlots, list[int]] = {}
        self._gradients: GradientNorms | None = None

    def add_norm(self, slot: Slot, norm: Tensor, elements: int) -> None:
        """Add the L2 norm of a microbatch's values, for their root mean square."""
        norms = self._norms.setdefault(slot, _Norms())
        norms.parts.append(self._add(norm))
        norms.elements.append(elements)

    def add_value(self, slot: Slot, value: Tensor) -> None:
        """Add what we have measured in a microbatch; shape []."""
        self._measured.setdefault(slot, _Given()).parts.append(self._add(value))

    def add_attention(self, slots: AttentionSlots, summary: Tensor) -> None:
        """Add a microbatch's summary of an attention."""
        self._attention.setdefault(slots, []).append(self._add(summary))

    def log(self, slot: Slot, value: Tensor | float) -> None:
        """Add what the job has given; it goes before what we have measured of the same series.

        Raises:
            ValueError: The value is not one number.
        """
        given = self._logged.setdefault(slot, _Given())
        if not isinstance(value, Tensor):
            given.numbers.append(float(value))
        elif value.numel() != 1 or value.is_meta or hasattr(value, "to_local"):
            raise ValueError(
                f"a logged value has shape {tuple(value.shape)}; allowed: an ordinary tensor with"
                " one element, or a number"
            )
        else:  # copied, since a job may add to its own tensor before the step ends
            copied = value.detach().to(torch.float32, copy=True)
            given.parts.append(self._add(copied))

    def set_gradients(
        self,
        norms: Tensor,
        slots: tuple[Slot, Slot],
        groups: Iterable[tuple[Slot, Sequence[int]]],
        scale: Tensor | float | None,
    ) -> None:
        """Set the norm of every parameter's gradient, shape [P], with the factor they carry.

        Args:
            norms: One for each parameter with a gradient.
            slots: Of the global norm, and of the number of broken gradients.
            groups: Slot and positions in `norms` for each module.
            scale: What to divide by; a tensor stays on its device.
        """
        part = self._add(norms)
        scale_part = None
        if isinstance(scale, Tensor):  # copied, since the scaler changes it in place
            scale_part = self._add(scale.detach().to(torch.float32, copy=True))
        number = float(scale) if scale is not None and scale_part is None else 1.0
        self._gradients = GradientNorms(part, *slots, tuple(groups), number, scale_part)

    def readings(self) -> list[Reading]:
        """Return how the series follow from `parts`; what the job has given comes last."""
        readings: list[Reading] = [
            RootMeanSquare(slot, norms.parts, norms.elements) for slot, norms in self._norms.items()
        ]
        readings += [AttentionSummaries(*slots, parts) for slots, parts in self._attention.items()]
        if self._gradients is not None:
            readings.append(self._gradients)
        for given in (self._measured, self._logged):
            readings += [Mean(slot, each.parts, each.numbers) for slot, each in given.items()]
        return readings

    def _add(self, tensor: Tensor) -> int:
        self.parts.append(tensor.detach())
        return len(self.parts) - 1
