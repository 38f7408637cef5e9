"""The accidents that a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from lightning.pytorch import Callback

from trainer.config import FaultsConfig
from trainer.faults import (
    FlippedWeights,
    Fp16Overflow,
    FreshWeights,
    LogitDrift,
    LostMoments,
    LrRestart,
    LrTooHigh,
    NanGradient,
    ScaledWeights,
    SlowRank,
    StaleMoments,
)

_KINDS: Final[dict[str, Callable[..., Callback]]] = {
    "lr_too_high": LrTooHigh,
    "lr_restart": LrRestart,
    "scaled_weights": ScaledWeights,
    "flipped_weights": FlippedWeights,
    "lost_moments": LostMoments,
    "stale_moments": StaleMoments,
    "fresh_weights": FreshWeights,
    "logit_drift": LogitDrift,
    "fp16_overflow": Fp16Overflow,
    "nan_gradient": NanGradient,
    "slow_rank": SlowRank,
}
"""By the field of the configuration, whose fields are the arguments of the class."""


def build_step_faults(faults: FaultsConfig, seed: int) -> list[Callback]:
    """Return the callbacks of all configured accidents of the process.

    Args:
        faults: Which ones.
        seed: Start of their random choices.
    """
    callbacks = []
    for name, kind in _KINDS.items():
        config = getattr(faults, name)
        if config is not None:
            options: dict[str, Any] = asdict(config)
            if name == "flipped_weights":
                options["seed"] = seed
            callbacks.append(kind(**options))
    return callbacks
