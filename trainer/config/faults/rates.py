"""Learning rates that are not what was meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from trainer.config.checks import require_count, require_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class LrTooHighConfig:
    """The rates are multiplied from a step on; the schedule goes on in its shape."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    step: int
    """Completed optimizer steps after which it happens."""
    factor: float = 30.0
    """Multiplier on the rates."""

    def __post_init__(self) -> None:
        require_count("faults.lr_too_high.step", self.step)
        require_positive("faults.lr_too_high.factor", self.factor)


@dataclass(frozen=True, kw_only=True, slots=True)
class LrRestartConfig:
    """The schedule starts again from its warm-up, too high, as in the 80B run after a resume."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    step: int
    """Completed optimizer steps after which it happens."""
    factor: float = 30.0
    """Multiplier on the peak rates of the schedule."""

    def __post_init__(self) -> None:
        require_count("faults.lr_restart.step", self.step)
        require_positive("faults.lr_restart.factor", self.factor)
