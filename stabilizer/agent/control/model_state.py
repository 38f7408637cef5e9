"""What a module holds: weights, buffers, modes, extra state.

`capture_module` returns a tree of live tensors for `HostCopier.freeze`; `restore_module` writes a
frozen one back in place, so that whoever holds a reference to a tensor keeps it; `check_module`
compares shapes beforehand, so that nothing is touched when a snapshot no longer fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from stabilizer.agent.control.host_copy import Held, Steady, Tree, is_same_bits, thaw
from stabilizer.errors import CommandRejectedError, RestoreError
from stabilizer.protocol.commands import RejectReason


def capture_module(module: nn.Module, *, with_gradients: bool = False) -> Tree:
    """Weights, all buffers (persistent or not), modes, and which gradients there are.

    Args:
        module: The whole model.
        with_gradients: Keep the gradients as well: manual optimization may step on them later.
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
        CommandRejectedError: Names, shapes or types differ.
    """
    _check_tensors("parameters", dict(module.named_parameters()), state["parameters"])
    _check_tensors("buffers", dict(module.named_buffers()), state["buffers"])


def _check_tensors(what: str, live: Mapping[str, torch.Tensor], held: Mapping[str, Held]) -> None:
    if live.keys() != held.keys():
        difference = sorted(live.keys() ^ held.keys())[:5]
        raise unfit(f"the model's {what} have changed since: {', '.join(difference)}")
    for name, tensor in live.items():
        kept = held[name].tensor
        if (tensor.shape, tensor.dtype) != (kept.shape, kept.dtype):
            raise unfit(
                f"{name} is {tuple(tensor.shape)} {tensor.dtype} now and was "
                f"{tuple(kept.shape)} {kept.dtype}"
            )


@torch.no_grad()
def restore_module(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Write everything back.

    Raises:
        RestoreError: A tensor does not hold afterwards what was written to it.
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
        tensor.copy_(held.tensor)
        if not is_same_bits(held.tensor, tensor):
            raise RestoreError(f"{name} does not hold what was written back to it")


def _gradient(parameter: nn.Parameter, kept: Held | bool | None) -> torch.Tensor | None:
    if kept is None:
        return None
    if isinstance(kept, Held):
        return kept.tensor.to(parameter.device, copy=True)
    # There was one, to be overwritten or zeroed before use. Zeros stand for it: a None would make
    # optimizers leave out a parameter that takes no part in the next step.
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def finite_candidates(
    module: nn.Module, optimizers: Iterable[Optimizer], exempt: frozenset[str]
) -> Iterator[torch.Tensor]:
    """The tensors that must be finite in a snapshot worth keeping.

    Args:
        module: The model.
        optimizers: Their state tensors count too.
        exempt: Buffers that hold Inf by design, masks for example.
    """
    yield from module.parameters()
    yield from (buffer for name, buffer in module.named_buffers() if name not in exempt)
    for optimizer in optimizers:
        for values in optimizer.state.values():
            if isinstance(values, Mapping):
                yield from (v for v in values.values() if isinstance(v, torch.Tensor))


def unfit(message: str) -> CommandRejectedError:
    """The refusal for a snapshot that the job has outgrown."""
    return CommandRejectedError(message, reason=RejectReason.UNSUPPORTED)
