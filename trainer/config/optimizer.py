"""AdamW, its schedule, and what is minimised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal, TypeAlias, get_args

from pydantic import ConfigDict

from trainer.config.checks import require, require_between, require_count, require_positive

DecayKind: TypeAlias = Literal[
    "q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "head", "embedding", "norm", "gate"
]
"""What a weight is for, in every tower; `norm` are scales and shifts, `head` the output's rows."""
DECAY_KINDS: Final[tuple[str, ...]] = get_args(DecayKind)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """How the weights move."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    learning_rate: float
    """Peak rate, reached at the end of the warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment per step."""
    eps: float = 1e-8
    """Added to the square root of the second moment: bounds the step of a silent weight."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices, per unit of rate; vectors, gates and embeddings have none."""
    weight_decay_by_kind: Mapping[DecayKind, float] = field(default_factory=dict)
    """Another decay for some kinds of weights, for example a heavier one of o_proj and fc2."""
    gradient_clip: float = 1.0
    """Largest global L2 norm of a gradient; 0: no clipping."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape after the warm-up, down to `final_ratio` at the last step."""
    warmup_steps: int = 0
    """Optimizer steps over which the rate rises linearly from 0."""
    final_ratio: float = 0.0
    """Rate of the last step as a part of the peak."""
    z_loss_weight: float = 1e-3
    """Weight of mean(logsumexp(logits)^2), which keeps the logits from drifting; 0: off."""

    def __post_init__(self) -> None:
        self._check_decay()
        require_positive("optimizer.learning_rate", self.learning_rate)
        require(
            all(0.0 <= beta < 1.0 for beta in self.betas),
            "optimizer.betas",
            self.betas,
            "two numbers from 0 to below 1",
        )
        require_positive("optimizer.eps", self.eps)
        require_between("optimizer.gradient_clip", self.gradient_clip, 0.0, 1e9)
        require_count("optimizer.warmup_steps", self.warmup_steps, at_least=0)
        require_between("optimizer.final_ratio", self.final_ratio, 0.0, 1.0)
        require_between("optimizer.z_loss_weight", self.z_loss_weight, 0.0, 1.0)

    def _check_decay(self) -> None:
        require_between("optimizer.weight_decay", self.weight_decay, 0.0, 100.0)
        for kind, decay in self.weight_decay_by_kind.items():
            allowed = f"keys among {', '.join(DECAY_KINDS)}"
            require(kind in DECAY_KINDS, "optimizer.weight_decay_by_kind", kind, allowed)
            require_between(f"optimizer.weight_decay_by_kind.{kind}", decay, 0.0, 100.0)
