"""Parameter groups, the optimizer and its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, Final

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

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
    """Return the weight decay of every possible group, by name."""
    decays = {"decayed": config.weight_decay, "others": 0.0}
    return decays | {str(kind): decay for kind, decay in config.weight_decay_by_kind.items()}


def follow_names(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
    """Fit a checkpoint's state to an optimizer that has more or fewer weights, by their names.

    A hook for `register_load_state_dict_pre_hook`: a run may resume with other parts unfrozen than
    before. New weights begin without moments, moments of others are dropped.

    Raises:
        ConfigurationError: It has other groups, so its rates cannot be assigned.
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


_OF_THE_RATE: Final = frozenset(
    {"learning_rate", "schedule", "warmup_steps", "final_ratio", "steps"}
)


def build_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    *,
    later: Collection[Part] = (),
    fused: bool = True,
) -> AdamW:
    """Make AdamW over the parameters that learn, now or later.

    Args:
        model: What is trained.
        config: Rates and decays.
        later: Frozen parts that will learn: without a gradient they are left out of every step.
        fused: One kernel for all weights; not with a loss scaler, whose gradients are clipped.
    """
    optimizer = AdamW(
        parameter_groups(model, config, later),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=fused,
    )
    optimizer.register_load_state_dict_pre_hook(follow_names)
    return optimizer


def build_schedule(optimizer: AdamW, config: OptimizerConfig, steps: int) -> LambdaLR:
    """Make the schedule of all groups over `steps` optimizer steps.

    Its shape is of the configuration alone: a checkpoint brings it no other one.
    """
    return LambdaLR(optimizer, _shape(config, steps))


def follow_configuration(
    optimizer: Optimizer,
    schedule: LambdaLR,
    config: OptimizerConfig,
    *,
    changed: Collection[str],
    peak_before: float,
) -> None:
    """Apply changes of the configuration to a restored optimizer and schedule.

    Unchanged values stay as restored, to the bit. If a field of the rates changed, they are
    recomputed for the current step of the schedule; a factor that was applied to the peak rate
    since it was configured is kept.

    Args:
        optimizer: Restored.
        schedule: Restored, made by `build_schedule` with the present configuration.
        config: The present one.
        changed: Fields of it that differ from the checkpoint's, and "steps", if their number does.
        peak_before: The checkpoint's learning rate, as it was configured.
    """
    decays = group_decays(config)
    for group in optimizer.param_groups:
        if "betas" in changed:
            group["betas"] = config.betas
        if "eps" in changed:
            group["eps"] = config.eps
        if "weight_decay" in changed or "weight_decay_by_kind" in changed:
            group["weight_decay"] = decays[group["name"]]
    if _OF_THE_RATE.isdisjoint(changed):
        return
    schedule.base_lrs = [
        config.learning_rate if peak == peak_before else peak * config.learning_rate / peak_before
        for peak in schedule.base_lrs
    ]
    for group, peak, shape in zip(
        optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["initial_lr"] = peak
        group["lr"] = peak * shape(schedule.last_epoch)


def _shape(config: OptimizerConfig, steps: int) -> Callable[[int], float]:
    """Return the multiplier on the peak rate after a number of completed steps.

    A function and no object: LambdaLR saves an object's fields, and restores them over the present
    configuration's.
    """

    def multiplier(completed: int) -> float:
        if completed < config.warmup_steps:
            return (completed + 1) / (config.warmup_steps + 1)  # the first step moves, too
        if config.schedule == "constant":
            return 1.0
        span = max(1, steps - config.warmup_steps)
        progress = min(1.0, (completed - config.warmup_steps) / span)
        shape = 1.0 - progress
        if config.schedule == "cosine":
            shape = 0.5 * (1.0 + math.cos(math.pi * progress))
        return config.final_ratio + (1.0 - config.final_ratio) * shape

    return multiplier
