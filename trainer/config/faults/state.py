"""Weights and moments that are not what they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from pydantic import ConfigDict

from trainer.config.checks import require, require_between, require_count

_BOTTOM_FC2: Final = "model.layers.0.mlp.down_proj"
"""An outer projection in the bottom layer: where instabilities are seen first (IDEFICS talk)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaledWeightsConfig:
    """The weights of a module are multiplied."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    step: int
    """Completed optimizer steps after which it happens."""
    module: str = _BOTTOM_FC2
    """Dotted name, or its end if only one module has that; everything below it."""
    factor: float = 30.0
    """Multiplier on the weights; 0 and below are allowed."""

    def __post_init__(self) -> None:
        require_count("faults.scaled_weights.step", self.step)
        require_between("faults.scaled_weights.factor", self.factor, -1e9, 1e9)


@dataclass(frozen=True, kw_only=True, slots=True)
class FlippedWeightsConfig:
    """One bit is flipped in a part of the weights of a module."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    step: int
    """Completed optimizer steps after which it happens."""
    module: str = "lm_head"
    """Dotted name, or its end if only one module has that; everything below it."""
    part: float = 0.5
    """Part of the weights, above 0 and at most 1."""
    bit: int = 0
    """Counted from the highest: 0 is the sign, 1 the largest power of the exponent."""

    def __post_init__(self) -> None:
        require_count("faults.flipped_weights.step", self.step)
        require(
            0 < self.part <= 1, "faults.flipped_weights.part", self.part, "above 0 and at most 1"
        )
        require_between("faults.flipped_weights.bit", self.bit, 0, 15)


@dataclass(frozen=True, kw_only=True, slots=True)
class LostMomentsConfig:
    """Moments of the optimizer are 0."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    step: int
    """Completed optimizer steps after which it happens."""
    which: Literal["first", "second", "both"] = "second"
    """The mean of gradients, the mean of their squares, or both."""
    keep_count: bool = True
    """The optimizer's own count of steps stays, so that it corrects no bias: with the
    second moments lost, the next steps are sqrt(1 / (1 - beta2)) times too large."""

    def __post_init__(self) -> None:
        require_count("faults.lost_moments.step", self.step)


@dataclass(frozen=True, kw_only=True, slots=True)
class StaleMomentsConfig:
    """The moments become those of an earlier step; the weights stay."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    step: int
    """Completed optimizer steps after which it happens."""
    age: int = 50
    """Steps by which the moments are too old; fewer than `step`."""

    def __post_init__(self) -> None:
        require_count("faults.stale_moments.step", self.step)
        require(
            1 <= self.age < max(self.step, 2),
            "faults.stale_moments.age",
            self.age,
            f"1 to {self.step - 1}, fewer than faults.stale_moments.step",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FreshWeightsConfig:
    """When the run resumes from a checkpoint, a module starts with fresh weights."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    module: str = ""
    """Dotted name, or its end if only one module has that; empty: the whole model."""
