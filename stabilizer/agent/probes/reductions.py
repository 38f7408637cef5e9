"""Statistics of tensors: tensors in, small float32 tensors out, on the tensor's own device.

No function here waits for the device, draws a random number or keeps a graph. Sums run in float32
whatever the input's precision. NaN and Inf in a tensor yield NaN or Inf, never hidden. A finite
float32 or bfloat16 value beyond 1.8e19 has an infinite square: its norm is Inf, as in
`torch.nn.utils.clip_grad_norm_`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeGuard

import torch
from torch import Tensor

_HALF: Final = frozenset({torch.float16, torch.bfloat16})
_MEASURED: Final = _HALF | {torch.float32, torch.float64}

MAX_CHUNK_ELEMENTS: Final = 2**24
"""Largest temporary of a statistic, in elements: 64 MiB of float32."""


def is_measurable(value: object) -> TypeGuard[Tensor]:
    """Return whether a value is an ordinary, non-empty tensor of real numbers.

    Excluded: integer, complex and eight-bit dtypes; sparse, nested and empty tensors; tensors
    without data (meta); and shards of distributed tensors, whose local part is not the whole.
    """
    return (
        isinstance(value, Tensor)
        and value.dtype in _MEASURED
        and value.layout is torch.strided
        and not value.is_nested
        and not value.is_meta
        and value.numel() > 0
        and not hasattr(value, "to_local")
    )


@contextmanager
def measuring(tensor: Tensor) -> Iterator[None]:
    """Disable gradients and autocast while measuring."""
    with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
        yield


def l2_norm(tensor: Tensor) -> Tensor:
    """Return the L2 norm over all elements; any shape in, shape [] out."""
    dtype = torch.float32 if tensor.dtype in _HALF else None
    norm: Tensor = torch.linalg.vector_norm(tensor.detach(), dtype=dtype)
    return norm.float()


def l2_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of each tensor, in one fused call per device and precision.

    Args:
        tensors: At least one; any shapes.

    Returns:
        Shape [len(tensors)], float32, in the order given, on the first tensor's device.
    """
    groups: dict[tuple[torch.device, torch.dtype | None], list[int]] = {}
    for index, tensor in enumerate(tensors):
        dtype = torch.float32 if tensor.dtype in _HALF else None
        groups.setdefault((tensor.device, dtype), []).append(index)
    norms: dict[int, Tensor] = {}
    for (_, dtype), indices in groups.items():
        group = torch._foreach_norm([tensors[index] for index in indices], 2.0, dtype)  # noqa: SLF001  as in clip_grad_norm_; no public name
        norms.update(zip(indices, group, strict=True))
    device = tensors[0].device
    ordered = (norms[index] for index in range(len(tensors)))
    return torch.stack([norm.to(device, torch.float32, non_blocking=True) for norm in ordered])


def z_loss(logits: Tensor) -> Tensor:
    """Return mean(logsumexp(logits)^2) over all positions, unweighted.

    Processes large logits in slices, to avoid a float32 copy of the whole.

    Args:
        logits: Shape [..., V] with at least one position.

    Returns:
        Shape [].
    """
    rows = logits.detach().reshape(-1, logits.shape[-1])
    size = max(1, MAX_CHUNK_ELEMENTS // rows.shape[1])
    sums = [
        torch.logsumexp(chunk.float(), dim=-1).square().sum() for chunk in torch.split(rows, size)
    ]
    return torch.stack(sums).sum() / rows.shape[0]
