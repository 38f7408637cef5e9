"""State of torch optimizers: captured, checked, put back in place.

`Optimizer.load_state_dict` makes all of the state anew beside the old one, keeps the tensors it is
given, and casts moments to the type of their parameter, which loses bits of float32 moments of
bfloat16 parameters. So the state is written in place, as it was. Optimizers with a
`load_state_dict` of their own are restored by it, on copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from stabilizer.agent.control.host_copy import Held, Tree, is_same_bits, thaw
from stabilizer.agent.control.model_state import unfit
from stabilizer.errors import RestoreError


def capture_optimizers(optimizers: Iterable[Optimizer]) -> Tree:
    """State of the optimizers, live."""
    return [optimizer.state_dict() for optimizer in optimizers]


def check_optimizers(optimizers: Sequence[Optimizer], states: Sequence[Mapping[str, Any]]) -> None:
    """Check that the optimizers still have the groups of the states.

    Raises:
        CommandRejectedError: The number of optimizers, groups, or parameters in a group differs.
    """
    now = [[len(group["params"]) for group in optimizer.param_groups] for optimizer in optimizers]
    then = [[len(group["params"]) for group in state["param_groups"]] for state in states]
    if now != then:
        raise unfit(f"the optimizers have {now} parameters by group now, and had {then}")


def restore_optimizers(
    optimizers: Sequence[Optimizer], states: Sequence[Mapping[str, Any]]
) -> None:
    """Put frozen states back.

    Raises:
        RestoreError: An optimizer does not hold afterwards what was given to it.
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
    """Write into the live tensor if there is one to write into; else make one."""
    if (
        isinstance(frozen, Held)
        and isinstance(live, torch.Tensor)
        and (live.shape, live.dtype, live.device)
        == (frozen.tensor.shape, frozen.tensor.dtype, frozen.device)
    ):
        return live.copy_(frozen.tensor)
    return thaw(frozen)


def _compare(optimizer: Optimizer, frozen: Mapping[str, Any]) -> None:
    live = optimizer.state_dict()["state"]
    for number, kept in frozen["state"].items():
        for name, value in kept.items() if isinstance(kept, Mapping) else ():
            if isinstance(value, Held) and not is_same_bits(value.tensor, live[number][name]):
                raise RestoreError(
                    f"{type(optimizer).__name__} does not hold what was given back: {name} of "
                    f"parameter {number}"
                )
