"""The whole of a run, and what must agree between its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from trainer.config.checks import require, require_between, require_count
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
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the matrix products; weights and optimizer stay in fp32. fp16 comes with a
    loss scaler. The losses are always computed in fp32."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """What trains; auto: GPUs if there are any."""
    devices: int = 1
    """Processes on this machine: GPUs, or processes of a CPU. Each reads its own part of the
    stream, so that one step sees devices * nodes * accumulate * data.batch_size sequences."""
    nodes: int = 1
    """Machines; each is started by the cluster (torchrun, SLURM)."""
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    """auto: one process, or ddp with several. ddp: every process holds the whole model. fsdp2:
    each holds a part of every layer's weights, gradients and moments (torch's fully_shard)."""
    compile: bool = False
    """torch.compile the model. Hooks on modules are then lost, so the agent measures no modules."""
    compile_backend: str = "inductor"
    """Backend of torch.compile. eager only traces and is for trying; aot_eager cannot do the
    backward pass of the resampler (torch 2.13), which inductor and eager can."""
    deterministic: bool = True
    """Refuse operations whose result differs from time to time; costs some speed on GPUs."""
    threads: int = 1
    """Torch threads of this process; two beside other processes can be far slower than one."""
    checkpoint_every: int = 0
    """Optimizer steps between two durable checkpoints, the last step included; 0: none."""
    keep_checkpoints: int = 3
    """Newest checkpoints that are kept; the newest healthy one is kept beside them."""
    peak_flops: float = 0.0
    """Floating-point operations per second that one device can do at best in this precision, for
    `mfu`; 0: `mfu` is not reported. An H100 does 989e12 in bf16."""
    log_seconds: float = 60.0
    """Seconds between two lines of progress where there is no terminal."""
    out: str = "out"
    """Folder for the losses file, the summary, the configuration and the checkpoints."""

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "devices", "nodes", "threads", "keep_checkpoints"):
            require_count(f"training.{name}", getattr(self, name))
        require(0 <= self.seed < 2**32, "training.seed", self.seed, "from 0 to 2**32 - 1")
        require_count("training.checkpoint_every", self.checkpoint_every, at_least=0)
        require_between("training.peak_flops", self.peak_flops, 0.0, 1e18)
        require_between("training.log_seconds", self.log_seconds, 1.0, 86_400.0)
        require(
            not (self.strategy == "fsdp2" and self.compile),
            "training.compile",
            self.compile,
            "false with training.strategy fsdp2",
        )
        require(
            not (self.strategy == "fsdp2" and self.precision == "fp16"),
            "training.precision",
            self.precision,
            "fp32 or bf16 with training.strategy fsdp2",
        )

    @property
    def processes(self) -> int:
        """Processes that train together, over all machines."""
        return self.devices * self.nodes


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
        require(
            not (self.model.has_two_formats and self.training.precision == "fp32"),
            "training.precision",
            self.training.precision,
            "bf16 or fp16, since model.pretrained.dtype is another than model.dtype",
        )
        per_step = self.data.batch_size * self.training.accumulate * self.training.processes
        require(
            per_step > 0 and self.data.epoch_samples % per_step == 0,
            "data.epoch_samples",
            self.data.epoch_samples,
            f"a multiple of the samples of one step ({per_step})",
        )
