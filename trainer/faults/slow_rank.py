"""One rank is slow, and all others wait for it at every collective."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from typing_extensions import override

from trainer.faults.base import SETTINGS, Factor, PassingFault

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


@dataclass(kw_only=True, config=SETTINGS)
class SlowRank(PassingFault):
    """One rank sleeps before each microbatch, for some steps; the numbers do not change."""

    name: ClassVar[str] = "slow_rank"

    seconds: Factor = 1.0
    """Sleep before each microbatch."""
    steps: Annotated[int, Field(ge=1)] = 10
    """Number of steps that it lasts."""
    rank: Annotated[int, Field(ge=0)] = 0
    """Global rank of the process that is slow."""

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin or end it; sleep."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.is_active and trainer.global_rank == self.rank:
            time.sleep(self.seconds)

    @override
    def strike(self, trainer: Trainer, module: LightningModule) -> str:
        """Begin."""
        return f"rank {self.rank} is slower by {self.seconds:g} s per microbatch"

    @override
    def cease(self) -> None:
        """Nothing to restore."""
