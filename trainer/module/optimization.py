"""AdamW with a parameter group per weight decay, and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Collection

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from trainer.config import OptimizerConfig, Part
from trainer.module.groups import follow_names, parameter_groups


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
    """Make the schedule of all groups over `steps` optimizer steps."""
    return LambdaLR(optimizer, _Schedule(config, steps))


class _Schedule:
    """Multiplier on the peak rate after a number of completed steps."""

    def __init__(self, config: OptimizerConfig, steps: int) -> None:
        self._shape = config.schedule
        self._warmup = config.warmup_steps
        self._final = config.final_ratio
        self._steps = steps

    def __call__(self, completed: int) -> float:
        if completed < self._warmup:
            return (completed + 1) / (self._warmup + 1)  # the first step moves, too
        if self._shape == "constant":
            return 1.0
        span = max(1, self._steps - self._warmup)
        progress = min(1.0, (completed - self._warmup) / span)
        shape = 1.0 - progress
        if self._shape == "cosine":
            shape = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self._final + (1.0 - self._final) * shape
