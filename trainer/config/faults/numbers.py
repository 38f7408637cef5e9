"""Numbers that leave their range, and a rank that leaves its pace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from trainer.config.checks import require_between, require_count, require_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitDriftConfig:
    """The logits drift away from zero and are rounded to bf16; ends when the run is rewound."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    step: int
    """Completed optimizer steps after which it begins."""
    per_step: float = 16.0
    """What is added to every logit, more at each step."""
    steps: int | None = None
    """How long it goes on; null: to the end."""
    head: str = "lm_head"
    """Module that makes the logits."""

    def __post_init__(self) -> None:
        require_count("faults.logit_drift.step", self.step)
        require_between("faults.logit_drift.per_step", self.per_step, -1e6, 1e6)
        if self.steps is not None:
            require_count("faults.logit_drift.steps", self.steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp16OverflowConfig:
    """The output of a module is too large, and goes through fp16, for some steps."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    step: int
    """Completed optimizer steps after which it begins."""
    module: str = "model.layers.0.mlp.down_proj"
    """Module that gives one tensor."""
    factor: float = 1e6
    """Multiplier on the output; beyond 65504 it is infinite."""
    steps: int = 1
    """How long it goes on."""

    def __post_init__(self) -> None:
        require_count("faults.fp16_overflow.step", self.step)
        require_positive("faults.fp16_overflow.factor", self.factor)
        require_count("faults.fp16_overflow.steps", self.steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class NanGradientConfig:
    """One element of a gradient is not a number, in one step."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    step: int
    """Completed optimizer steps after which it happens."""
    module: str = "lm_head"
    """Module whose gradient it is."""

    def __post_init__(self) -> None:
        require_count("faults.nan_gradient.step", self.step)


@dataclass(frozen=True, kw_only=True, slots=True)
class SlowRankConfig:
    """One rank sleeps before each microbatch, for some steps."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    step: int
    """Completed optimizer steps after which it begins."""
    seconds: float = 1.0
    """Sleep before each microbatch."""
    steps: int = 10
    """How long it goes on."""
    rank: int = 0
    """Process that is slow, counted over all machines."""

    def __post_init__(self) -> None:
        require_count("faults.slow_rank.step", self.step)
        require_positive("faults.slow_rank.seconds", self.seconds)
        require_count("faults.slow_rank.steps", self.steps)
        require_count("faults.slow_rank.rank", self.rank, at_least=0)
