"""AdamW with a parameter group per weight decay, and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Final

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from trainer.config import OptimizerConfig, Part
from trainer.module.groups import follow_names, group_decays, parameter_groups

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
    """Give what a checkpoint has restored the values that are configured otherwise by now.

    What has not changed stays as it was restored, to the bit. Rates are recomputed for the step at
    which the schedule stands, if one of their fields changed; a factor that something has put onto
    the peak rate since it was configured stays on it.

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
