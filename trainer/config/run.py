"""The whole of a run, and what must agree between its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from trainer.config.checks import require, require_count
from trainer.config.data import DataConfig
from trainer.config.faults import FaultsConfig
from trainer.config.model import ModelConfig
from trainer.config.monitor import MonitorConfig
from trainer.config.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How long, from which seed, on what."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    steps: int
    """Optimizer steps of the run; the schedule ends there."""
    seed: int = 0
    """Start of all randomness: weights, order of the data, dropout."""
    accumulate: int = 1
    """Microbatches per optimizer step."""
    threads: int = 1
    """Torch threads of this process; two beside other processes can be far slower than one."""
    out: str = "out"
    """Folder for the losses file, the summary and the configuration of the run."""

    def __post_init__(self) -> None:
        require_count("training.steps", self.steps)
        require(0 <= self.seed < 2**32, "training.seed", self.seed, "from 0 to 2**32 - 1")
        require_count("training.accumulate", self.accumulate)
        require_count("training.threads", self.threads)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything a run is made from; saved with the run."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    model: ModelConfig
    """The architecture."""
    data: DataConfig
    """The corpus and its stream."""
    optimizer: OptimizerConfig
    """How the weights move."""
    training: TrainingConfig
    """How long, from which seed."""
    monitor: MonitorConfig
    """Who watches."""
    faults: FaultsConfig
    """Which failures happen."""

    def __post_init__(self) -> None:
        require(
            self.data.sequence_length <= self.model.max_positions,
            "data.sequence_length",
            self.data.sequence_length,
            f"at most model.max_positions ({self.model.max_positions})",
        )
        require(
            self.optimizer.warmup_steps < self.training.steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            f"fewer than training.steps ({self.training.steps})",
        )
        per_step = self.data.batch_size * self.training.accumulate
        require(
            self.data.epoch_samples % per_step == 0,
            "data.epoch_samples",
            self.data.epoch_samples,
            f"a multiple of the samples of one step ({per_step})",
        )
