"""AdamW with two parameter groups, and learning-rate schedules."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from trainer.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """Make AdamW over the trainable parameters.

    Matrices decay; vectors and scalars (norms, biases, gates) and embeddings do not.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
            (decayed if is_matrix else others).append(parameter)
    groups = [
        {"name": "decayed", "params": decayed, "weight_decay": config.weight_decay},
        {"name": "others", "params": others, "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


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
