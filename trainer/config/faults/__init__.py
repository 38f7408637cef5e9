"""Failures on demand; none by default.

Accidents of the process happen once, after so many completed optimizer steps, and are undone by a
rollback to before. Bad data stays bad: a rollback meets it again unless it skips it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from trainer.config.faults.data import (
    BadDocumentsConfig,
    CorruptedShardConfig,
    RepeatedDocumentsConfig,
)
from trainer.config.faults.numbers import (
    Fp16OverflowConfig,
    LogitDriftConfig,
    NanGradientConfig,
    SlowRankConfig,
)
from trainer.config.faults.rates import LrRestartConfig, LrTooHighConfig
from trainer.config.faults.state import (
    FlippedWeightsConfig,
    FreshWeightsConfig,
    LostMomentsConfig,
    ScaledWeightsConfig,
    StaleMomentsConfig,
)

__all__ = [
    "BadDocumentsConfig",
    "CorruptedShardConfig",
    "FaultsConfig",
    "FlippedWeightsConfig",
    "Fp16OverflowConfig",
    "FreshWeightsConfig",
    "LogitDriftConfig",
    "LostMomentsConfig",
    "LrRestartConfig",
    "LrTooHighConfig",
    "NanGradientConfig",
    "RepeatedDocumentsConfig",
    "ScaledWeightsConfig",
    "SlowRankConfig",
    "StaleMomentsConfig",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultsConfig:
    """Which failures happen in this run; null: not this one."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    lr_too_high: LrTooHighConfig | None = None
    """The learning rate is too high from a step on."""
    lr_restart: LrRestartConfig | None = None
    """A schedule that restarts too high."""
    bad_documents: BadDocumentsConfig | None = None
    """A window of garbage in the stream."""
    repeated_documents: RepeatedDocumentsConfig | None = None
    """A window of the stream in which few documents come again and again."""
    corrupted_shard: CorruptedShardConfig | None = None
    """A file of the corpus whose bytes are damaged."""
    scaled_weights: ScaledWeightsConfig | None = None
    """Weights of a module are multiplied."""
    flipped_weights: FlippedWeightsConfig | None = None
    """A bit is flipped in weights of a module."""
    lost_moments: LostMomentsConfig | None = None
    """Adam's moments are lost."""
    stale_moments: StaleMomentsConfig | None = None
    """Adam's moments are those of an earlier step."""
    fresh_weights: FreshWeightsConfig | None = None
    """A resume does not load the weights of a module."""
    logit_drift: LogitDriftConfig | None = None
    """Logits drift away from zero, in bf16."""
    fp16_overflow: Fp16OverflowConfig | None = None
    """Activations leave the range of fp16."""
    nan_gradient: NanGradientConfig | None = None
    """A gradient has a NaN."""
    slow_rank: SlowRankConfig | None = None
    """One rank is slow."""
