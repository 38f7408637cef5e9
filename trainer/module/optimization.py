"""AdamW with a parameter group per weight decay, and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Collection

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from stabilizer.agent.probes.naming import describe
from trainer.config import DECAY_KINDS, OptimizerConfig, Part
from trainer.module.parts import part_of

_WITHOUT_DECAY = ("embedding", "norm", "gate")


def build_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    *,
    later: Collection[Part] = (),
    fused: bool = True,
) -> AdamW:
    """Make AdamW over the parameters that learn, now or later.

    Matrices decay; vectors and scalars (norms, biases, gates) and embeddings do not. Kinds with a
    decay of their own have a group of their own.

    Args:
        model: What is trained.
        config: Rates and decays.
        later: Frozen parts that will learn: without a gradient they are left out of every step.
        fused: One kernel for all weights; not with a loss scaler, whose gradients are clipped.
    """
    kinds = _kinds(model)
    groups: dict[str, list[nn.Parameter]] = {"decayed": [], "others": []}
    for kind in DECAY_KINDS:
        if kind in config.weight_decay_by_kind:
            groups[kind] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or (later and part_of(name) in later):
            kind = kinds.get(parameter, "")
            is_matrix = parameter.ndim >= 2 and kind not in _WITHOUT_DECAY
            groups[kind if kind in groups else "decayed" if is_matrix else "others"].append(
                parameter
            )
    decays: dict[str, float] = {"decayed": config.weight_decay, "others": 0.0}
    for kind, decay in config.weight_decay_by_kind.items():
        decays[kind] = decay
    return AdamW(
        [
            {"name": name, "params": parameters, "weight_decay": decays[name]}
            for name, parameters in groups.items()
            if parameters
        ],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=fused,
    )


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
