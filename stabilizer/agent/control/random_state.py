"""Random state of the process: python, numpy's global generator, torch on host and devices."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class RandomState:
    """Everything that global generators will yield from here on."""

    python: tuple[Any, ...]
    numpy: dict[str, Any]
    torch_host: torch.Tensor
    cuda: tuple[tuple[torch.device, torch.Tensor], ...] = ()

    @property
    def num_bytes(self) -> int:
        """Approximate size: the Mersenne twisters of python and numpy, and the tensors."""
        tensors = [self.torch_host, *(state for _, state in self.cuda)]
        return 2 * 2500 + sum(tensor.numel() for tensor in tensors)

    def is_same_host_state(self, other: RandomState) -> bool:
        """Tell whether no host generator has moved between the two."""
        return (
            torch.equal(self.torch_host, other.torch_host)
            and self.python == other.python
            and _numpy_words(self.numpy) == _numpy_words(other.numpy)
        )


def _numpy_words(state: dict[str, Any]) -> tuple[object, ...]:
    inner = state["state"]
    if state["bit_generator"] == "MT19937":  # numpy's global default
        return inner["key"].tobytes(), inner["pos"], state["has_gauss"], state["gauss"]
    return (repr(state),)


def capture_random_state(devices: Sequence[torch.device] = ()) -> RandomState:
    """Read all generators without moving them.

    Args:
        devices: CUDA devices whose generators belong to the job; others are ignored.
    """
    return RandomState(
        python=random.getstate(),
        numpy=dict(np.random.get_state(legacy=False)),  # noqa: NPY002  the global one jobs draw from
        torch_host=torch.get_rng_state(),
        cuda=tuple(
            (device, torch.cuda.get_rng_state(device))
            for device in devices
            if device.type == "cuda"
        ),
    )


def restore_random_state(state: RandomState) -> None:
    """Put all generators back to where they were."""
    random.setstate(state.python)
    np.random.set_state(state.numpy)  # noqa: NPY002  the global one jobs draw from
    torch.set_rng_state(state.torch_host)
    for device, cuda_state in state.cuda:
        torch.cuda.set_rng_state(cuda_state, device)
