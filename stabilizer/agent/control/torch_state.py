"""State of modules, optimizers and random generators: captured, checked, restored in place.

`capture_*` returns a tree of live tensors for `HostCopier.freeze`; `check_*` compares shapes
without touching anything; `restore_*` writes a frozen tree back in place, so that references to a
tensor stay valid, and verifies the result.

`Optimizer.load_state_dict` is not used: it allocates the state a second time, keeps the tensors it
is given, and casts moments to the dtype of their parameter, which loses bits of float32 moments of
bfloat16 parameters. Optimizers that override `load_state_dict` are restored by it, from copies.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from stabilizer.agent.control.host_copy import Held, Steady, Tree, is_same_bits, thaw
from stabilizer.agent.probes.sharding import Layout, layout_of, local_part
from stabilizer.errors import CommandRejectedError, RestoreError
from stabilizer.protocol.commands import RejectReason


def capture_module(module: nn.Module, *, with_gradients: bool = False) -> Tree:
    """Return weights, all buffers (persistent or not), modes, and which gradients exist.

    Args:
        module: The whole model.
        with_gradients: Keep the gradients too: manual optimization may use them in a later step.
    """
    return {
        "parameters": {name: _steady_if_frozen(name, p) for name, p in module.named_parameters()},
        "buffers": {name: Steady(name, buffer) for name, buffer in module.named_buffers()},
        "trains": {name: p.requires_grad for name, p in module.named_parameters()},
        "gradients": {
            name: (p.grad if with_gradients else True)
            for name, p in module.named_parameters()
            if p.grad is not None
        },
        "modes": {name: child.training for name, child in module.named_modules()},
        "extra": {
            name: child.get_extra_state()
            for name, child in module.named_modules()
            if _has_extra_state(child)
        },
    }


def _steady_if_frozen(name: str, parameter: nn.Parameter) -> torch.Tensor | Steady:
    return parameter if parameter.requires_grad else Steady(name, parameter)


def _has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state


def check_module(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Check that the module still has the tensors of the state.

    Raises:
        CommandRejectedError: Names, shapes or dtypes differ.
    """
    _check_tensors("parameters", dict(module.named_parameters()), state["parameters"])
    _check_tensors("buffers", dict(module.named_buffers()), state["buffers"])


def _check_tensors(what: str, live: Mapping[str, torch.Tensor], held: Mapping[str, Held]) -> None:
    if live.keys() != held.keys():
        difference = sorted(live.keys() ^ held.keys())[:5]
        raise unfit(f"the model's {what} have changed since: {', '.join(difference)}")
    for name, tensor in live.items():
        kept = held[name]
        if not kept.fits(tensor):
            now = _describe(local_part(tensor), layout_of(tensor))
            raise unfit(f"{name} is {now} now and was {_describe(kept.tensor, kept.layout)}")


def _describe(local: torch.Tensor, layout: Layout | None) -> str:
    text = f"{tuple(local.shape)} {local.dtype}"
    if layout is None:
        return text
    placements = ", ".join(map(str, layout.placements))
    return f"{text} of {tuple(layout.shape)} as {placements} over {layout.mesh.size()} ranks"


@torch.no_grad()
def restore_module(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Write the state back.

    Raises:
        RestoreError: A tensor differs from what was written to it.
    """
    for name, child in module.named_modules():
        child.training = state["modes"].get(name, child.training)
        if name in state["extra"]:
            child.set_extra_state(thaw(state["extra"][name]))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(state["trains"][name])
        parameter.grad = _gradient(parameter, state["gradients"].get(name))
    for name, tensor in _tensors(module):
        held = state["parameters"].get(name) or state["buffers"][name]
        local_part(tensor).copy_(held.tensor)
        if not is_same_bits(held.tensor, tensor):
            raise RestoreError(f"{name} does not hold what was written back to it")


def _gradient(parameter: nn.Parameter, kept: Held | bool | None) -> torch.Tensor | None:
    if kept is None:
        return None
    if isinstance(kept, Held):
        gradient: torch.Tensor = thaw(kept)
        return gradient
    # There was a gradient, to be overwritten or zeroed before use. Use zeros: with None, optimizers
    # would skip a parameter that takes no part in the next step.
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def finite_candidates(
    module: nn.Module, optimizers: Iterable[Optimizer], exempt: frozenset[str]
) -> Iterator[torch.Tensor]:
    """Yield the tensors that must be finite for a snapshot to be kept.

    Args:
        module: The model.
        optimizers: Optimizers whose state tensors count too.
        exempt: Names of buffers that hold Inf by design, such as masks.
    """
    yield from module.parameters()
    yield from (buffer for name, buffer in module.named_buffers() if name not in exempt)
    for optimizer in optimizers:
        for values in optimizer.state.values():
            if isinstance(values, Mapping):
                yield from (v for v in values.values() if isinstance(v, torch.Tensor))


def unfit(message: str) -> CommandRejectedError:
    """Return the rejection for a snapshot that no longer fits the job."""
    return CommandRejectedError(message, reason=RejectReason.UNSUPPORTED)


def capture_optimizers(optimizers: Iterable[Optimizer]) -> Tree:
    """Return the live state of the optimizers."""
    return [optimizer.state_dict() for optimizer in optimizers]


def check_optimizers(optimizers: Sequence[Optimizer], states: Sequence[Mapping[str, Any]]) -> None:
    """Check that the optimizers still have the groups of the states.

    Raises:
        CommandRejectedError: The number of optimizers, groups or parameters per group differs.
    """
    now = [[len(group["params"]) for group in optimizer.param_groups] for optimizer in optimizers]
    then = [[len(group["params"]) for group in state["param_groups"]] for state in states]
    if now != then:
        raise unfit(f"the optimizers have {now} parameters per group now and had {then}")


def restore_optimizers(
    optimizers: Sequence[Optimizer], states: Sequence[Mapping[str, Any]]
) -> None:
    """Restore frozen states.

    Raises:
        RestoreError: An optimizer differs from what was written to it.
    """
    for optimizer, frozen in zip(optimizers, states, strict=True):
        if type(optimizer).load_state_dict is Optimizer.load_state_dict:
            _write_groups(optimizer, frozen["param_groups"])
            _write_state(optimizer, frozen)
        else:
            optimizer.load_state_dict(thaw(frozen))
        _compare(optimizer, frozen)


def _write_groups(optimizer: Optimizer, frozen_groups: Sequence[Mapping[str, Any]]) -> None:
    for group, frozen in zip(optimizer.param_groups, frozen_groups, strict=True):
        for name in group.keys() - frozen.keys():
            del group[name]
        for name, value in frozen.items():
            if name != "params":
                group[name] = _write(group.get(name), value)


def _write_state(optimizer: Optimizer, frozen: Mapping[str, Any]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in frozen["param_groups"] for number in group["params"]]
    named = dict(zip(numbers, parameters, strict=True))
    kept_keys = {named.get(number, number) for number in frozen["state"]}
    for key in [key for key in optimizer.state if key not in kept_keys]:
        del optimizer.state[key]
    for number, values in frozen["state"].items():
        key = named.get(number, number)
        if not isinstance(values, Mapping):
            optimizer.state[key] = thaw(values)
            continue
        live = optimizer.state[key]
        for name in live.keys() - values.keys():
            del live[name]
        for name, value in values.items():
            live[name] = _write(live.get(name), value)


@torch.no_grad()
def _write(live: object, frozen: Tree) -> Tree:
    """Write into the live tensor if it fits; else make a new one."""
    if (
        isinstance(frozen, Held)
        and isinstance(live, torch.Tensor)
        and frozen.fits(live)
        and local_part(live).device == frozen.device
    ):
        local_part(live).copy_(frozen.tensor)
        return live
    return thaw(frozen)


def _compare(optimizer: Optimizer, frozen: Mapping[str, Any]) -> None:
    live = optimizer.state_dict()["state"]
    for number, kept in frozen["state"].items():
        for name, value in kept.items() if isinstance(kept, Mapping) else ():
            if isinstance(value, Held) and not is_same_bits(value.tensor, live[number][name]):
                raise RestoreError(
                    f"{type(optimizer).__name__} does not hold what was restored: {name} of "
                    f"parameter {number}"
                )


@dataclass(frozen=True)
class RandomState:
    """State of all global generators."""

    python: tuple[Any, ...]
    numpy: dict[str, Any]
    torch_host: torch.Tensor
    cuda: tuple[tuple[torch.device, torch.Tensor], ...] = ()

    @property
    def num_bytes(self) -> int:
        """Approximate size: the Mersenne twisters of Python and numpy, and the tensors."""
        tensors = [self.torch_host, *(state for _, state in self.cuda)]
        return 2 * 2500 + sum(tensor.numel() for tensor in tensors)

    def is_same_host_state(self, other: RandomState) -> bool:
        """Return whether no host generator has advanced between the two."""
        return (
            torch.equal(self.torch_host, other.torch_host)
            and self.python == other.python
            and _numpy_key(self.numpy) == _numpy_key(other.numpy)
        )


def _numpy_key(state: dict[str, Any]) -> tuple[object, ...]:
    inner = state["state"]
    if state["bit_generator"] == "MT19937":  # numpy's global default
        return inner["key"].tobytes(), inner["pos"], state["has_gauss"], state["gauss"]
    return (repr(state),)


def capture_random_state(devices: Sequence[torch.device] = ()) -> RandomState:
    """Read all generators without advancing them.

    Args:
        devices: CUDA devices whose generators the job uses; other kinds are ignored.
    """
    return RandomState(
        python=random.getstate(),
        numpy=dict(np.random.get_state(legacy=False)),  # noqa: NPY002  jobs draw from the global one
        torch_host=torch.get_rng_state(),
        cuda=tuple(
            (device, torch.cuda.get_rng_state(device))
            for device in devices
            if device.type == "cuda"
        ),
    )


def restore_random_state(state: RandomState) -> None:
    """Restore all generators."""
    random.setstate(state.python)
    np.random.set_state(state.numpy)  # noqa: NPY002  jobs draw from the global one
    torch.set_rng_state(state.torch_host)
    for device, cuda_state in state.cuda:
        torch.cuda.set_rng_state(cuda_state, device)
