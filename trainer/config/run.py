"""The whole of a run: its optimizer, its length, what watches it, and what must agree."""

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
    """Address of a collector; solo: the job evaluates the rules itself; null: no monitoring."""
    run: Annotated[str, AfterValidator(_check_name)] = "idefics"
    """Name of the run; a job that resumes from a checkpoint of a run continues it."""
    key: str = ""
    """Distinguishes runs of one name; a job with the name and key of a run always continues it."""
    mode: Literal["observe", "propose", "auto"] = "propose"
    """observe: report only; propose: wait for an approval before acting; auto: act."""
    policy: str | None = None
    """Rule file of this run, or the name of a preset that comes with one; null: the collector's
    own."""
    snapshot_every: Count = 25
    """Steps between two snapshots in memory."""
    keep_snapshots: Count = 6
    """Snapshots in memory at once; each is weights and optimizer state, three times the weights."""


DecayKind: TypeAlias = Literal[
    "q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "head", "embedding", "norm", "gate"
]
"""What a weight is for, in every tower; `norm` are scales and shifts, `head` the output's rows."""
DECAY_KINDS: Final[tuple[str, ...]] = get_args(DecayKind)
Decay: TypeAlias = Annotated[float, Field(ge=0, le=100)]
Beta: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True, config=SECTION)
class OptimizerConfig(Section):
    """How the weights move."""

    learning_rate: Positive
    """Peak rate, reached at the end of the warm-up."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the first and second moment per step."""
    eps: Positive = 1e-8
    """Added to the square root of the second moment: bounds the step of a silent weight."""
    weight_decay: Decay = 0.1
    """Decoupled decay of matrices, per unit of rate; vectors, gates and embeddings have none."""
    weight_decay_by_kind: Mapping[DecayKind, Decay] = field(default_factory=dict)
    """Another decay for some kinds of weights, for example a heavier one of o_proj and fc2."""
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest global L2 norm of a gradient; 0: no clipping."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape after the warm-up, down to `final_ratio` at the last step."""
    warmup_steps: Natural = 0
    """Optimizer steps over which the rate rises linearly from 0."""
    final_ratio: Fraction = 0.0
    """Rate of the last step as a part of the peak."""
    z_loss_weight: Fraction = 1e-3
    """Weight of mean(logsumexp(logits)^2), which keeps the logits from drifting; 0: off."""


@dataclass(frozen=True, kw_only=True, config=SECTION)
class TrainingConfig(Section):
    """How long, from which seed, on what."""

    steps: Count
    """Optimizer steps of the run; the schedule ends there."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Start of all randomness: weights, order of the data, dropout."""
    accumulate: Count = 1
    """Microbatches per optimizer step."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the matrix products; weights and optimizer stay in fp32. fp16 comes with a
    loss scaler. The losses are always computed in fp32."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """What trains; auto: GPUs if there are any."""
    devices: Count = 1
    """Processes on this machine: GPUs, or processes of a CPU. Each reads its own part of the
    stream, so that one step sees devices * nodes * accumulate * data.batch_size sequences."""
    nodes: Count = 1
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
    threads: Count = 1
    """Torch threads of this process; two beside other processes can be far slower than one."""
    checkpoint_every: Natural = 0
    """Optimizer steps between two durable checkpoints, the last step included; 0: none."""
    keep_checkpoints: Count = 3
    """Newest checkpoints that are kept; the newest healthy one is kept beside them."""
    peak_flops: Annotated[float, Field(ge=0, le=1e18)] = 0.0
    """Floating-point operations per second that one device can do at best in this precision, for
    `mfu`; 0: `mfu` is not reported. An H100 does 989e12 in bf16."""
    log_seconds: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    """Seconds between two lines of progress where there is no terminal."""
    out: str = "out"
    """Folder for the losses file, the summary, the configuration and the checkpoints."""

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
        """Processes that train together, over all machines."""
        return self.devices * self.nodes


@dataclass(frozen=True, kw_only=True, config=SECTION)
class RunConfig(Section):
    """Everything a run is made from; saved with the run."""

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
    faults: Annotated[Mapping[str, Any], PlainValidator(read_faults)]
    """Which failures happen on demand; null: not this one. `trainer.faults` describes them."""

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
