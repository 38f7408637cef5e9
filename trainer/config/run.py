"""Configuration of a run: model, data, optimizer, training, monitoring and faults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

from pydantic import AfterValidator, Field, PlainValidator
from pydantic.dataclasses import dataclass

from trainer.config.data import DataConfig
from trainer.config.model import ModelConfig
from trainer.config.section import (
    SECTION,
    Count,
    Fraction,
    Natural,
    Positive,
    Refusals,
    Section,
    agreement,
    refuse,
)
from trainer.faults import read_faults

SOLO: Final = "solo"


def _check_address(address: str) -> str:
    if address != SOLO and not address.startswith(("http://", "https://")):
        raise refuse("an address that starts with http:// or https://, or solo")
    return address


def _check_name(name: str) -> str:
    if not name.strip():
        raise refuse("a name that is not empty")
    return name


@dataclass(frozen=True, kw_only=True, config=SECTION)
class MonitorConfig(Section):
    """The connection to a collector."""

    collector: Annotated[str, AfterValidator(_check_address)] | None = None
    """URL of a collector; solo: evaluate the rules in the job; null: no monitoring."""
    run: Annotated[str, AfterValidator(_check_name)] = "idefics"
    """Name of the run; a job that resumes from a checkpoint of a run continues it."""
    key: str = ""
    """Distinguishes runs of one name; a job with the name and key of a run always continues it."""
    mode: Literal["observe", "propose", "auto"] = "propose"
    """observe: only record; propose: act after approval; auto: act."""
    policy: str | None = None
    """Rule file of the run, or the name of a preset that has one; null: the default of the
    collector."""
    snapshot_every: Count = 25
    """Steps between two snapshots in memory."""
    keep_snapshots: Count = 6
    """Number of snapshots in memory; each holds weights and optimizer state, three times the
    weights."""


DecayKind: TypeAlias = Literal[
    "q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "head", "embedding", "norm", "gate"
]
"""Role of a weight in every tower; `norm` means scales and shifts, `head` the output rows."""
DECAY_KINDS: Final[tuple[str, ...]] = get_args(DecayKind)
Decay: TypeAlias = Annotated[float, Field(ge=0, le=100)]
Beta: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True, config=SECTION)
class OptimizerConfig(Section):
    """AdamW, the learning-rate schedule, and regularization."""

    learning_rate: Positive
    """Peak learning rate, reached at the end of the warm-up."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: Positive = 1e-8
    """Added to the square root of the second moment; bounds the update of rarely used weights."""
    weight_decay: Decay = 0.1
    """Decoupled decay of matrices, relative to the rate; none for vectors, gates and embeddings."""
    weight_decay_by_kind: Mapping[DecayKind, Decay] = field(default_factory=dict)
    """Overrides of weight_decay by kind of weight, for example a larger one for o_proj and fc2."""
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest global L2 norm of the gradient; 0: no clipping."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Schedule after the warm-up, down to `final_ratio` at the last step."""
    warmup_steps: Natural = 0
    """Optimizer steps over which the rate rises linearly from 0."""
    final_ratio: Fraction = 0.0
    """Final rate as a fraction of the peak."""
    z_loss_weight: Fraction = 1e-3
    """Weight of mean(logsumexp(logits)^2), which keeps the logits from drifting; 0: off."""


@dataclass(frozen=True, kw_only=True, config=SECTION)
class TrainingConfig(Section):
    """Length, seed, hardware and output of a run."""

    steps: Count
    """Number of optimizer steps; the schedule ends there."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of all random generators: weights, order of the data, dropout."""
    accumulate: Count = 1
    """Microbatches per optimizer step."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of matrix products; weights, optimizer and losses stay in fp32. fp16 uses a
    loss scaler."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Device type; auto: GPUs if there are any."""
    devices: Count = 1
    """Processes on this machine: GPUs, or CPU processes. Each reads its own part of the stream; a
    step uses devices * nodes * accumulate * data.batch_size sequences."""
    nodes: Count = 1
    """Number of machines; start them with torchrun or SLURM."""
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    """auto: one process, or ddp with several. ddp: every process holds the whole model. fsdp2:
    each holds a part of every layer's weights, gradients and moments (torch's fully_shard)."""
    compile: bool = False
    """Use torch.compile. Hooks do not run in a compiled model: the agent measures no modules."""
    compile_backend: str = "inductor"
    """Backend of torch.compile. eager only traces, for tests; aot_eager fails in the backward pass
    of the resampler (torch 2.13), inductor and eager do not."""
    deterministic: bool = True
    """Refuse nondeterministic operations; costs some speed on GPUs."""
    threads: Count = 1
    """Number of torch threads; beside other processes two can be far slower than one."""
    checkpoint_every: Natural = 0
    """Optimizer steps between two checkpoints; the last step has one as well. 0: no checkpoints."""
    keep_checkpoints: Count = 3
    """Number of newest checkpoints to keep, in addition to the newest healthy one."""
    peak_flops: Annotated[float, Field(ge=0, le=1e18)] = 0.0
    """Peak FLOPS of one device in this precision, for `mfu`; 0: no `mfu`. 989e12 for an H100 in
    bf16."""
    log_seconds: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    """Seconds between two progress lines if there is no terminal."""
    out: str = "out"
    """Folder for losses, summary, configuration, ledger and checkpoints."""

    @agreement
    def _sharded_models_do_not_compile(self) -> Refusals:
        if self.strategy == "fsdp2" and self.compile:
            yield "compile", self.compile, "false with training.strategy fsdp2"

    @agreement
    def _sharded_models_have_no_loss_scaler(self) -> Refusals:
        if self.strategy == "fsdp2" and self.precision == "fp16":
            yield "precision", self.precision, "fp32 or bf16 with training.strategy fsdp2"

    @property
    def processes(self) -> int:
        """Number of processes on all machines."""
        return self.devices * self.nodes


@dataclass(frozen=True, kw_only=True, config=SECTION)
class RunConfig(Section):
    """The complete configuration of a run; saved with it."""

    model: ModelConfig
    """The architecture and the pretrained weights."""
    data: DataConfig
    """The corpus and its stream."""
    optimizer: OptimizerConfig
    """AdamW, the learning-rate schedule, and regularization."""
    training: TrainingConfig
    """Length, seed, hardware and output of the run."""
    monitor: MonitorConfig
    """The connection to a collector."""
    faults: Annotated[Mapping[str, Any], PlainValidator(read_faults)]
    """Failures to inject; null: off."""

    @agreement
    def _sequences_fit_the_model(self) -> Refusals:
        length, most = self.data.sequence_length, self.model.max_positions
        if length > most:
            yield "data.sequence_length", length, f"at most model.max_positions ({most})"

    @agreement
    def _the_warmup_ends(self) -> Refusals:
        warmup, steps = self.optimizer.warmup_steps, self.training.steps
        if warmup >= steps:
            yield "optimizer.warmup_steps", warmup, f"fewer than training.steps ({steps})"

    @agreement
    def _two_formats_need_mixed_precision(self) -> Refusals:
        precision = self.training.precision
        if precision == "fp32" and self.model.has_two_formats:
            allowed = "bf16 or fp16, since model.pretrained.dtype is another than model.dtype"
            yield "training.precision", precision, allowed

    @agreement
    def _an_epoch_is_whole_steps(self) -> Refusals:
        data, training = self.data, self.training
        per_step = data.batch_size * training.accumulate * training.processes
        if data.epoch_samples % per_step:
            allowed = f"a multiple of the samples of one step ({per_step})"
            yield "data.epoch_samples", data.epoch_samples, allowed
