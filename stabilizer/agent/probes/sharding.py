"""Distributed tensors (FSDP2, HSDP, tensor parallelism): what this rank holds of them.

A `DTensor` stands for the whole tensor: an operation on it may communicate. Measuring and copying
work on the local part, an ordinary tensor, and communicate nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

if dist.is_available():
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor, Placement


def is_distributed(tensor: Tensor) -> TypeGuard[DTensor]:
    """Return whether a tensor is spread over ranks."""
    return dist.is_available() and isinstance(tensor, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a distributed tensor; an ordinary tensor itself."""
    if not is_distributed(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local().detach()


@dataclass(frozen=True)
class Layout:
    """How a tensor is spread over ranks, and its whole shape."""

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    def assemble(self, local: Tensor) -> Tensor:
        """Return the distributed tensor of which this rank holds `local`."""
        whole: Tensor = DTensor.from_local(
            local,
            self.mesh,
            self.placements,
            run_check=False,
            shape=self.shape,
            stride=self.stride,
        )
        return whole

    def sharding_groups(self) -> tuple[dist.ProcessGroup, ...]:
        """Return the groups of ranks over which the tensor is split, not replicated."""
        return tuple(
            self.mesh.get_group(dimension)
            for dimension, placement in enumerate(self.placements)
            if not placement.is_replicate() and self.mesh.size(dimension) > 1
        )


def layout_of(tensor: Tensor) -> Layout | None:
    """Return the layout of a distributed tensor; None for an ordinary one."""
    if not is_distributed(tensor):
        return None
    return Layout(tensor.device_mesh, tuple(tensor.placements), tensor.shape, tensor.stride())


def find_layout_obstacle(model: nn.Module) -> str | None:
    """Return why the tensors of a model cannot be copied rank by rank; None if they can."""
    if any(hasattr(module, "_fsdp_wrapped_module") for module in model.modules()):
        return "the model is sharded by FullyShardedDataParallel; supported: fully_shard (FSDP2)"
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        local = local_part(tensor)
        layout = layout_of(tensor)
        if hasattr(local, "__tensor_flatten__"):  # made of other tensors
            return f"{name} is a {type(local).__name__}, a kind of tensor that is not supported"
        if layout is None:
            continue
        pending = [p for p in layout.placements if not (p.is_replicate() or _is_shard(p))]
        if pending:
            return f"{name} is distributed as {pending[0]}; supported: shards and replicas"
        if local.device.type != layout.mesh.device_type:
            return f"{name} is offloaded from {layout.mesh.device_type} to {local.device.type}"
    return None


def _is_shard(placement: Any) -> bool:  # noqa: ANN401  torch's shards have no common public class
    return hasattr(placement, "dim")


class GatheredParameters:
    """Parameters that FSDP2 keeps gathered after a forward without a backward, as in a validation.

    They neither fit a snapshot nor see what is restored. All ranks must free them at the same
    times, since they gather them again together.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = (
            [module for module in model.modules() if isinstance(module, FSDPModule)]
            if dist.is_available()
            else []
        )

    def free(self) -> None:
        """Leave every parameter in its shards; communicates nothing."""
        for module in self._modules:
            module.reshard()
