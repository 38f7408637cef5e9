"""One rank is slow, and all others wait for it at every collective."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from trainer.faults.step_fault import PassingFault


class SlowRank(PassingFault):
    """For some steps one rank sleeps before each microbatch. No number of the training changes."""

    name = "slow_rank"

    def __init__(
        self,
        *,
        step: int,
        seconds: float = 1.0,
        steps: int = 10,
        rank: int = 0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Say when, how slow, how long and which.

        Args:
            step: Completed optimizer steps after which it begins.
            seconds: Sleep before each microbatch.
            steps: How long it goes on.
            rank: Global rank that is slow.
            sleep: Waits.

        Raises:
            ValueError: A number cannot be used.
        """
        super().__init__(step, steps)
        if not (seconds > 0 and math.isfinite(seconds)) or rank < 0:
            raise ValueError(
                f"{self.name}: seconds={seconds}, rank={rank}; allowed: finite seconds above 0 and "
                "a rank from 0"
            )
        self._seconds = seconds
        self._rank = rank
        self._sleep = sleep

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin or end it; be slow."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.is_active and trainer.global_rank == self._rank:
            self._sleep(self._seconds)

    @override
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Begin."""
        return f"rank {self._rank} is slower by {self._seconds:g} s per microbatch"

    @override
    def cease(self) -> None:
        """Nothing to put back."""
