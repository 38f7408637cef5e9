"""Bounds of the commands that a job obeys, set by the user who starts it.

The collector has its own guards. These bounds hold whatever it sends, or whatever is sent in its
place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stabilizer.errors import CommandRejectedError, ConfigurationError
from stabilizer.protocol.commands import (
    Command,
    PauseParameters,
    ReduceLrParameters,
    RejectReason,
    RollbackParameters,
    StopParameters,
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of the commands that a job obeys; the same on every rank.

    Args:
        min_lr_scale: Lowest multiplier on the learning rate, over all cuts in effect.
        max_rollbacks: Rollbacks in the life of a job, across restarts from its checkpoints.
        max_skip_steps: Steps' worth of data that one rollback may skip.
        allow_pause: Whether the job may be paused.
        allow_stop: Whether the job may be stopped.

    Raises:
        ConfigurationError: A bound is out of range.
    """

    min_lr_scale: float = 0.01
    max_rollbacks: int = 100
    max_skip_steps: int = 2_000
    allow_pause: bool = True
    allow_stop: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.min_lr_scale <= 1:  # NaN as well
            raise ConfigurationError(
                f"limits.min_lr_scale is {self.min_lr_scale}; allowed: above 0, at most 1"
            )
        for name in ("max_rollbacks", "max_skip_steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ConfigurationError(f"limits.{name} is {value}; allowed: 0 or more")

    def check(self, command: Command, *, lr_scale: float, rollbacks: int) -> None:
        """Check a command that would be applied now.

        Args:
            command: The command.
            lr_scale: Multiplier on the learning rate in effect.
            rollbacks: Rollbacks so far.

        Raises:
            CommandRejectedError: It goes beyond a limit.
        """
        parameters = command.parameters
        if isinstance(parameters, PauseParameters) and not self.allow_pause:
            raise _beyond("the job does not allow a pause")
        if isinstance(parameters, StopParameters) and not self.allow_stop:
            raise _beyond("the job does not allow a stop")
        if isinstance(parameters, ReduceLrParameters):
            self._check_cut(parameters, lr_scale)
        if isinstance(parameters, RollbackParameters):
            if rollbacks >= self.max_rollbacks:
                raise _beyond(f"{rollbacks} rollbacks so far; the job allows {self.max_rollbacks}")
            if parameters.skip_steps > self.max_skip_steps:
                raise _beyond(
                    f"it skips the data of {parameters.skip_steps} steps; the job allows "
                    f"{self.max_skip_steps}"
                )
            if parameters.reduce_lr is not None:
                self._check_cut(parameters.reduce_lr, lr_scale)

    def _check_cut(self, parameters: ReduceLrParameters, lr_scale: float) -> None:
        scale = lr_scale * parameters.factor
        if scale < self.min_lr_scale and not math.isclose(scale, self.min_lr_scale):
            raise _beyond(
                f"it would set lr_scale to {scale:.3g}; the job allows at least "
                f"{self.min_lr_scale:g}"
            )


def _beyond(message: str) -> CommandRejectedError:
    return CommandRejectedError(message, reason=RejectReason.BEYOND_LIMITS)
