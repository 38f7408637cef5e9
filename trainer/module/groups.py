"""The optimizer's parameter groups: who decays how much, and who is who in a checkpoint."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from torch import nn
from torch.optim import Optimizer

from stabilizer.agent.probes.naming import describe
from stabilizer.errors import ConfigurationError
from trainer.config import DECAY_KINDS, OptimizerConfig, Part
from trainer.module.parts import can_learn, part_of

_WITHOUT_DECAY: Final = ("embedding", "norm", "gate")


def parameter_groups(
    model: nn.Module, config: OptimizerConfig, later: Collection[Part] = ()
) -> list[dict[str, Any]]:
    """Group what learns by its weight decay, with names; groups without a weight are left out.

    Matrices decay; vectors and scalars (norms, biases, gates) and embeddings do not. Kinds with a
    decay of their own have a group of their own.

    Args:
        model: What is trained.
        config: Decays.
        later: Frozen parts that will learn.
    """
    kinds = _kinds(model)
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {"decayed": [], "others": []}
    for kind in DECAY_KINDS:
        if kind in config.weight_decay_by_kind:
            groups[kind] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or (later and part_of(name) in later and can_learn(name)):
            group = kinds.get(parameter, "")
            if group not in groups:
                is_matrix = parameter.ndim >= 2 and group not in _WITHOUT_DECAY
                group = "decayed" if is_matrix else "others"
            groups[group].append((name, parameter))
    decays = group_decays(config)
    return [
        {"name": group, "params": parameters, "weight_decay": decays[group]}
        for group, parameters in groups.items()
        if parameters
    ]


def group_decays(config: OptimizerConfig) -> dict[str, float]:
    """Return the weight decay of every group that there may be, by its name."""
    decays = {"decayed": config.weight_decay, "others": 0.0}
    return decays | {str(kind): decay for kind, decay in config.weight_decay_by_kind.items()}


def follow_names(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
    """Fit a checkpoint's state to an optimizer that has more or fewer weights, by their names.

    A hook for `register_load_state_dict_pre_hook`: a run may go on with other parts unfrozen than
    before. New weights begin without moments, moments of others are dropped.

    Raises:
        ConfigurationError: It has other groups; nobody could say which rates are theirs.
    """
    saved, live = state["param_groups"], optimizer.param_groups
    names_then, names_now = ([group.get("name", "?") for group in each] for each in (saved, live))
    if names_then != names_now:
        raise ConfigurationError(
            f"optimizer.weight_decay_by_kind: groups {', '.join(names_now)} cannot be used; "
            f"allowed: those of the checkpoint, {', '.join(names_then)} (model.freeze changes "
            "them, too, where it leaves a group without a weight)"
        )
    if any("param_names" not in group for group in (*saved, *live)):
        return None
    if all(s["param_names"] == g["param_names"] for s, g in zip(saved, live, strict=True)):
        return None
    numbers = {
        name: number
        for group in saved
        for name, number in zip(group["param_names"], group["params"], strict=True)
    }
    moments: dict[int, Any] = {}
    groups: list[dict[str, Any]] = []
    count = 0
    for old, group in zip(saved, live, strict=True):
        names = group["param_names"]
        for number, name in enumerate(names, start=count):
            if numbers.get(name) in state["state"]:
                moments[number] = state["state"][numbers[name]]
        places = list(range(count, count + len(names)))
        groups.append({**old, "params": places, "param_names": list(names)})
        count += len(names)
    return {**state, "state": moments, "param_groups": groups}


def _kinds(model: nn.Module) -> dict[nn.Parameter, str]:
    """Kind of every parameter that has one: the agent's names, so that rules say the same."""
    kinds: dict[nn.Parameter, str] = {}
    for site in describe(model):
        if site.parameter is not None:
            kinds[site.parameter] = site.kind.value
        elif site.kind.value in DECAY_KINDS:
            kinds |= dict.fromkeys(site.module.parameters(), site.kind.value)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            kinds |= dict.fromkeys(module.parameters(), "embedding")
        elif "Norm" in type(module).__name__:
            kinds |= dict.fromkeys(module.parameters(recurse=False), "norm")
    return kinds
