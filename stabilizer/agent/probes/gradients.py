"""Norms of gradients before clipping: the global one at every step, the modules' when sampled."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stabilizer.agent.probes import reductions
from stabilizer.agent.probes.record import StepRecord
from stabilizer.agent.probes.vector import Slot

_logger = logging.getLogger(__name__)


class GradientProbe:
    """Norms of the gradients that a model's parameters hold.

    Args:
        model: The model; shared parameters count once.
        whole: Slot of the global norm.
        nonfinite: Slot of the number of gradients with NaN or Inf.
        modules: Slot of each module's norm; over all parameters in it, its bias among them.
    """

    def __init__(
        self, model: nn.Module, whole: Slot, nonfinite: Slot, modules: Mapping[Slot, nn.Module]
    ) -> None:
        self._parameters = list(model.parameters())
        self._slots = (whole, nonfinite)
        index = {parameter: number for number, parameter in enumerate(self._parameters)}
        self._modules = {
            slot: [index[parameter] for parameter in module.parameters()]
            for slot, module in modules.items()
        }
        self._is_sharded = any(hasattr(each, "_fsdp_wrapped_module") for each in model.modules())
        self._told = False

    @torch.no_grad()
    def measure(self, record: StepRecord, scale: Tensor | float | None, *, sampled: bool) -> None:
        """Put the norms of the present gradients into the record.

        Shards of distributed tensors are not the gradient: with one among them nothing is measured,
        and the log says so once.

        Args:
            record: Of the step.
            scale: A loss scaler's factor that the gradients still carry; None for none.
            sampled: Whether the modules' norms are wanted as well.
        """
        present = {
            number: _dense(parameter.grad)
            for number, parameter in enumerate(self._parameters)
            if parameter.grad is not None and parameter.grad.numel()
        }
        gradients = list(present.values())
        if not gradients:
            return
        whole = all(reductions.is_measurable(gradient) for gradient in gradients)
        if self._is_sharded or not whole:
            self._tell_once()
            return
        position = {number: place for place, number in enumerate(present)}
        groups = []
        for slot, numbers in self._modules.items() if sampled else ():
            places = [position[number] for number in numbers if number in position]
            if places:
                groups.append((slot, places))
        record.set_gradients(reductions.l2_norms(gradients), self._slots, groups, scale)

    def _tell_once(self) -> None:
        if not self._told:
            _logger.warning("gradients are not measured: some are sharded or of an unknown kind")
            self._told = True


def _dense(gradient: Tensor) -> Tensor:
    """Values of a sparse gradient, with those of the same row added up."""
    if gradient.layout is not torch.sparse_coo:
        return gradient
    values = gradient.coalesce().values()
    return values if values.numel() else values.new_zeros(1)
