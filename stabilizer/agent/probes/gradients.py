"""Norms of gradients, before clipping, over all the shards of a distributed model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stabilizer.agent.probes import reductions
from stabilizer.agent.probes.record import Slot, StepRecord
from stabilizer.agent.probes.sharding import is_distributed, layout_of, local_part

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParameterNorms:
    """L2 norms of the gradients of single parameters."""

    norms: Tensor
    """Shape [n], float32, on the device of the gradients."""
    places: Mapping[int, int]
    """Number of a parameter with a gradient to its place in `norms`."""


@dataclass(frozen=True)
class _Stretch:
    """Neighbours in the vector of norms that are split over the same groups of ranks."""

    start: int
    stop: int
    groups: tuple[dist.ProcessGroup, ...]
    device_type: str


class GradientNormMeter:
    """Measures the norm of every parameter's gradient; sums over ranks what they hold in shards.

    With shards, every rank must call `measure` at the same steps: one all-reduce of one number per
    parameter for each group of ranks, in the same order on all of them, without waiting for the
    device. A replicated parameter counts once.

    Args:
        model: The model, the same on every rank; shared parameters count once.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self._stretches: list[_Stretch] = []
        self._order = self._plan()
        # FullyShardedDataParallel (FSDP1) keeps shards in ordinary tensors.
        self._is_unknown = any(hasattr(each, "_fsdp_wrapped_module") for each in model.modules())
        self._has_warned = False

    @property
    def is_sharded(self) -> bool:
        """Whether ranks hold parts of the gradients, and must measure together."""
        return any(stretch.groups for stretch in self._stretches)

    def _plan(self) -> list[int]:
        """Order the parameters by the groups of ranks that hold them."""
        members: dict[tuple[str, ...], list[int]] = {}
        groups: dict[tuple[str, ...], tuple[tuple[dist.ProcessGroup, ...], str]] = {}
        for number, parameter in enumerate(self.parameters):
            layout = layout_of(parameter)
            over = layout.sharding_groups() if layout is not None else ()
            key = tuple(str(group.group_name) for group in over)
            members.setdefault(key, []).append(number)
            groups[key] = (over, layout.mesh.device_type if layout is not None else "")
        order: list[int] = []
        for key, numbers in members.items():
            self._stretches.append(_Stretch(len(order), len(order) + len(numbers), *groups[key]))
            order += numbers
        return order

    @torch.no_grad()
    def measure(self) -> ParameterNorms | None:
        """Return the norms of the present gradients; None if there are none.

        A gradient of an unsupported kind hides all norms, which is logged once.
        """
        if self._is_unknown:
            self._warn_once()
            return None
        present = {
            number: _aligned(self.parameters[number])
            for number in self._order
            if self.parameters[number].grad is not None
        }
        values = {number: gradient for number, gradient in present.items() if gradient.numel()}
        is_whole = all(reductions.is_measurable(gradient) for gradient in values.values())
        if not is_whole:
            self._warn_once()
            values = {}
        measured = reductions.l2_norms(list(values.values())) if values else None
        if not self.is_sharded:
            places = {number: place for place, number in enumerate(values)}
            return None if measured is None else ParameterNorms(measured, places)
        norms = self._reduce(self._fill(measured, list(values)))
        places = {n: place for place, n in enumerate(self._order) if n in present}
        return ParameterNorms(norms, places) if present and is_whole else None

    def _fill(self, measured: Tensor | None, numbers: Sequence[int]) -> Tensor:
        """Return the squared norms of all parameters in order; 0 without a gradient here."""
        if measured is None:
            device = local_part(self.parameters[0]).device
            return torch.zeros(len(self._order), dtype=torch.float64, device=device)
        squares = measured.double().square()
        if len(numbers) == len(self._order):
            return squares
        zero = squares.new_zeros(())
        found = dict(zip(numbers, squares.unbind(), strict=True))
        return torch.stack([found.get(number, zero) for number in self._order])

    def _reduce(self, squares: Tensor) -> Tensor:
        parts = []
        for stretch in self._stretches:
            part = squares[stretch.start : stretch.stop]
            if stretch.groups:
                part = part.to(stretch.device_type)
                for group in stretch.groups:
                    dist.all_reduce(part, group=group)
            parts.append(part.sqrt().to(squares.device, torch.float32, non_blocking=True))
        return torch.cat(parts)

    def _warn_once(self) -> None:
        if not self._has_warned:
            _logger.warning(
                "gradients are not measured: some are sharded or of an unsupported kind"
            )
            self._has_warned = True


def _aligned(parameter: nn.Parameter) -> Tensor:
    """Return what this rank holds of a gradient, laid out as its parameter, without duplicates.

    Tensor parallelism may leave sums over ranks pending in a gradient.
    """
    gradient = parameter.grad
    if gradient is None:
        return parameter.new_zeros(0)
    if is_distributed(gradient) and is_distributed(parameter):
        if gradient.placements != parameter.placements:
            gradient = gradient.redistribute(placements=parameter.placements)
        return local_part(gradient)
    if gradient.layout is not torch.sparse_coo:
        return gradient
    values = gradient.coalesce().values()
    return values if values.numel() else values.new_zeros(1)


class GradientProbe:
    """Records the global norm at every step, and the norms of modules when sampled.

    Args:
        meter: Measures the gradients of the model.
        whole: Slot of the global norm.
        nonfinite: Slot of the number of gradients with NaN or Inf.
        modules: Slot of each module's norm, over all its parameters, including biases.
    """

    def __init__(
        self,
        meter: GradientNormMeter,
        whole: Slot,
        nonfinite: Slot,
        modules: Mapping[Slot, nn.Module],
    ) -> None:
        self._meter = meter
        self._slots = (whole, nonfinite)
        index = {parameter: number for number, parameter in enumerate(self._meter.parameters)}
        self._modules = {
            slot: [index[parameter] for parameter in module.parameters()]
            for slot, module in modules.items()
        }

    def measure(self, record: StepRecord, scale: Tensor | float | None, *, sampled: bool) -> None:
        """Record the norms of the present gradients.

        Args:
            record: Record of the step.
            scale: A loss scaler's factor that the gradients still carry; None for none.
            sampled: Whether to record the modules' norms too.
        """
        measured = self._meter.measure()
        if measured is None:
            return
        groups = []
        for slot, numbers in self._modules.items() if sampled else ():
            places = [measured.places[number] for number in numbers if number in measured.places]
            if places:
                groups.append((slot, places))
        record.set_gradients(measured.norms, self._slots, groups, scale)
