"""`Job`: connects the probes, the telemetry, and the control of one monitored job.

It knows no training framework; an integration calls it at the points of a step. Ranks other than 0
report nothing and measure only their shards of the gradients; snapshots, agreement and rewinding
happen on every rank.
"""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol, Self

from pydantic import JsonValue, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from stabilizer.agent.control.agreement import Agreement
from stabilizer.agent.control.executor import Executor, Training
from stabilizer.agent.control.inbox import CommandInbox
from stabilizer.agent.control.optimizer_step import GuardPolicy, LrOverride, NonfiniteGuard
from stabilizer.agent.control.snapshots import Snapshot, SnapshotRing, default_max_bytes
from stabilizer.agent.integrations.scaling import LossScaling
from stabilizer.agent.integrations.settings import JobSettings
from stabilizer.agent.integrations.solo import SoloBrain
from stabilizer.agent.probes.gradients import GradientNormMeter
from stabilizer.agent.probes.probe_set import ProbeSet
from stabilizer.agent.probes.record import PendingFrames
from stabilizer.agent.probes.sharding import GatheredParameters
from stabilizer.agent.telemetry.http import Transport
from stabilizer.agent.telemetry.reporter import Reporter
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.clock import Clock
from stabilizer.protocol.batches import (
    AttemptStart,
    BatchAnswer,
    Marker,
    MarkerKind,
    SamplingPlan,
    SnapshotInfo,
)
from stabilizer.protocol.commands import CommandResult
from stabilizer.protocol.message import PROTOCOL_VERSION
from stabilizer.protocol.metrics import Metric
from stabilizer.protocol.runs import ResumedFrom, RewindKind, RunRegister, RunState, SchedulerJob

logger = logging.getLogger(__name__)

_CLOSE_SECONDS: Final = 5.0
_MAX_TEXT: Final = 500
"""Characters of a marker's text."""
_HASH: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")


class Telemetry(Protocol):
    """Where measurements go and commands come from."""

    @property
    def run_id(self) -> str | None:
        """Id of the run; None until the collector has answered."""

    @property
    def plan(self) -> SamplingPlan:
        """How often the modules are measured."""

    def start(self) -> None:
        """Start."""

    def put(self, frames: PendingFrames) -> None:
        """Hand over the frames of a step."""

    def marker(self, marker: Marker) -> None:
        """Hand over an event."""

    def set_snapshots(self, infos: Sequence[SnapshotInfo]) -> None:
        """Report the inventory."""

    def begin_attempt(self, attempt_id: str, start: AttemptStart) -> None:
        """Begin the next attempt."""

    def result(self, result: CommandResult) -> None:
        """Report the result of a command."""

    def set_state(self, state: RunState, step: int, message: str = "") -> None:
        """Report the state of the job."""

    def close(self, state: RunState, timeout_seconds: float = 5.0) -> None:
        """Send what is left and stop."""


class NullTelemetry:
    """Telemetry of other ranks than 0, and before training starts."""

    plan = SamplingPlan()
    run_id: str | None = None

    def start(self) -> None:
        """Do nothing."""

    def put(self, frames: PendingFrames) -> None:
        """Do nothing."""

    def marker(self, marker: Marker) -> None:
        """Do nothing."""

    def set_snapshots(self, infos: Sequence[SnapshotInfo]) -> None:
        """Do nothing."""

    def begin_attempt(self, attempt_id: str, start: AttemptStart) -> None:
        """Do nothing."""

    def result(self, result: CommandResult) -> None:
        """Do nothing: rank 0 reports it."""

    def set_state(self, state: RunState, step: int, message: str = "") -> None:
        """Do nothing: rank 0 reports it."""

    def close(self, state: RunState, timeout_seconds: float = 5.0) -> None:
        """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class JobSubject:
    """What is trained, as the integration found it."""

    model: nn.Module
    optimizers: Sequence[Optimizer]
    groups: Sequence[str]
    training: Training
    agreement: Agreement
    take_snapshot: Callable[[str, int], Snapshot | None]
    accumulate: int = 1
    world_size: int = 1
    global_batch: int | None = None
    start_step: int = 0
    config: dict[str, JsonValue] = field(default_factory=dict)


class Job:
    """One monitored training in this process, from its start to its end."""

    def __init__(
        self,
        settings: JobSettings,
        clock: Clock,
        *,
        on_drop: Callable[[Any], None] | None = None,
        local_ranks: int = 1,
        transport: Transport | None = None,
        reporting: ReporterSettings | None = None,
    ) -> None:
        self.settings = settings
        self.inbox = CommandInbox(clock, self._report_result)
        max_bytes = settings.snapshot_bytes or default_max_bytes() // local_ranks
        self.ring = SnapshotRing(settings.keep_snapshots, max_bytes, on_drop)
        self.override = LrOverride()
        self.guard = NonfiniteGuard(settings.guard)
        self._clock = clock
        self._transport = transport
        self._reporting = reporting or ReporterSettings()
        self._telemetry: Telemetry = NullTelemetry()
        self._probes: ProbeSet | None = None
        self._gradients: GradientNormMeter | None = None
        self._gathered: GatheredParameters | None = None
        self._executor: Executor | None = None
        self._subject: JobSubject | None = None
        self._attempt_ids = [uuid.uuid4().hex]
        self._resumed: ResumedFrom | None = None
        self._rollbacks = 0
        self._step_began = 0.0
        self._logged: set[str] = set()
        self._left_out: set[tuple[str, ...]] = set()
        self._steps_reported = 0  # optimizer steps up to the last report
        self._guarded = 0  # of those since, how many the guard emptied
        self._is_open = False

    @property
    def attempt(self) -> int:
        """Number of the current attempt in this process, from 1."""
        return len(self._attempt_ids)

    @property
    def attempt_id(self) -> str:
        """Id of the current attempt; the same on every rank."""
        return self._attempt_ids[-1]

    @property
    def is_started(self) -> bool:
        """Whether training is monitored now."""
        return self._is_open

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """A module that is copied (for weight averaging) does not get a job of its own."""
        memo[id(self)] = self
        return self

    def start(self, subject: JobSubject) -> None:
        """Register the run and attach the hooks; training begins."""
        self._subject = subject
        self._attempt_ids = [subject.agreement.share_id(self.attempt_id)]
        self._gathered = GatheredParameters(subject.model)
        self._gathered.free()
        self._gradients = GradientNormMeter(subject.model)
        if subject.agreement.is_leader:
            self._probes = ProbeSet(
                subject.model,
                max_queries=self.settings.max_queries,
                attention=self.settings.attention,
                head=self.settings.head,
                accumulate=subject.accumulate,
                groups=subject.groups,
                gradients=self._gradients,
            )
            self._telemetry = self._make_telemetry(self._introduce(subject, self._probes))
            self._probes.attach()
        self.override.attach(subject.optimizers)
        self._executor = Executor(
            subject.training,
            self,
            self.inbox,
            self.ring,
            self.override,
            subject.agreement,
            limits=self.settings.limits,
        )
        self._executor.rollbacks = self._rollbacks
        self._telemetry.start()
        self._is_open = True
        self._step_began = self._clock.monotonic()

    def log(self, name: str, value: Tensor | float, **labels: str) -> None:
        """Log a value of a metric at this step; a tensor stays on its device.

        Of several values in a step (microbatches) the mean counts. If a module logs `loss` itself,
        the loss it backpropagates is reported as `loss_total`.

        A value that is not one number, or whose name or labels are invalid, is left out with one
        warning: a mistake in a report must not end a training.
        """
        if self._report(name, value, labels) and not labels:
            self._logged.add(name)

    def phase(self, text: str) -> None:
        """Mark that training changes from the next step on, and how.

        When layers are unfrozen or the data changes, other values become normal. Rules start new
        baselines there, and raise no alert for a while (`inhibit_after: phase_change`). Call it
        between two steps, or before the first forward of a step; a text that is too long is cut.
        """
        if self._is_open and self._subject is not None:
            step = self._subject.training.step
            self.marker(Marker(kind=MarkerKind.PHASE_CHANGE, step=step, text=text[:_MAX_TEXT]))

    def _report(self, name: str, value: Tensor | float, labels: dict[str, str]) -> bool:
        if self._probes is None or not self._is_open:
            return True
        try:
            self._probes.log(name, value, **labels)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            if (name, *labels) not in self._left_out:
                self._left_out.add((name, *labels))
                logger.warning("%s %s cannot be reported and is left out: %s", name, labels, error)
            return False
        return True

    def boundary(self) -> None:
        """Apply commands and take a snapshot if one is due; call it between two steps.

        Raises:
            RestoreError: The state may be half restored. The job must not continue.
        """
        if self._executor is None or self._subject is None or not self._is_open:
            return
        if self._gathered is not None:
            self._gathered.free()
        rewound = self._executor.boundary()
        if rewound:
            self._report_snapshots()
        elif not self._executor.is_stopping:
            self._take_snapshot(self._subject)
        self._step_began = self._clock.monotonic()

    def begin_step(self, step: int) -> None:
        """Begin the step with this number; call it before the first microbatch."""
        if self._probes is not None and self._is_open:
            self._probes.begin_step(self._telemetry.plan.is_sampled(step))

    def before_optimizer_step(
        self,
        optimizer: Optimizer,
        parameters: Iterable[nn.Parameter],
        *,
        is_first: bool,
        grad_scale: Tensor | None = None,
    ) -> None:
        """Measure gradients; call it after the last backward, before clipping. All ranks.

        Args:
            optimizer: About to step.
            parameters: Of the model.
            is_first: Whether it is the first optimizer in this step.
            grad_scale: A loss scaler's factor that the gradients still carry; None for none.
        """
        if not self._is_open or self._gradients is None or self._subject is None:
            return
        is_sharded = self._gradients.is_sharded
        if is_first and self._probes is not None:
            self._probes.after_backward(grad_scale)
        elif is_first and is_sharded:
            self._gradients.measure()
        if self.guard.act(parameters, self._subject.agreement.any_rank if is_sharded else None):
            self._guarded += 1
            logger.warning("gradients are not finite: the step is left out")
        self.override.reassert(optimizer)

    def log_loss(self, loss: Tensor | float) -> None:
        """Log the loss of a microbatch, not divided by the number of microbatches."""
        if self._probes is None or not self._is_open or Metric.LOSS_TOTAL in self._logged:
            return
        name = Metric.LOSS_TOTAL if Metric.LOSS in self._logged else Metric.LOSS
        self._report(name, loss, {})

    def log_scaling(self, scaling: LossScaling) -> None:
        """Log what a loss scaler did in the step; call it before `end_step`."""
        self._report(Metric.LOSS_SCALE, scaling.scale, {})
        self._report(
            Metric.STEP_SKIPPED,
            self._has_skipped() if scaling.skipped is None else scaling.skipped,
            {},
        )

    def _has_skipped(self) -> float:
        """Return 1 if no optimizer has stepped since the last step, or only over no gradients."""
        stepped = self.override.steps_seen - self._steps_reported
        return float(stepped <= self._guarded)

    def end_step(self, step: int) -> None:
        """Report the step and settle what waited for it; call it after the optimizer."""
        if self._executor is None or not self._is_open:
            return
        self._executor.after_step()
        if self._guarded or self.guard.policy is GuardPolicy.SKIP_STEP:
            self._report(Metric.STEP_SKIPPED, self._has_skipped(), {})
        self._steps_reported, self._guarded = self.override.steps_seen, 0
        if self._probes is not None:
            for group, rate in self.override.effective.items():
                self._report(Metric.LR, rate, {"group": group})
            self._probes.log(Metric.LR_SCALE, self.override.scale)
            seconds = self._clock.monotonic() - self._step_began
            self._probes.log(Metric.STEP_SECONDS, seconds)
            self._telemetry.put(self._probes.end_step(step, self._clock.now().timestamp()))
        cuts = len(self.override.cuts)
        self.override.advance()
        if len(self.override.cuts) < cuts:
            text = f"a cut has ended: lr_scale {self.override.scale:.6g}"
            self.marker(Marker(kind=MarkerKind.LR_CHANGE, step=step, text=text))

    def finish(self, step: int) -> None:
        """End a training that is complete: settle open commands. All ranks."""
        if self._executor is not None and self._is_open:
            self._executor.finish()
            self._close(RunState.FINISHED, step, "")

    def fail(self, step: int, message: str) -> None:
        """End after an error or an interruption; waits for no other rank."""
        if self._is_open:
            self._close(RunState.FAILED, step, message)

    # What the executor reports beside results, and what a checkpoint holds.

    def begin_attempt(self, start: AttemptStart) -> None:
        """Begin the next attempt. Every rank derives the same id for it."""
        self._attempt_ids.append(derive_attempt_id(self._attempt_ids[0], self.attempt + 1))
        self._telemetry.begin_attempt(self.attempt_id, start)

    def marker(self, marker: Marker) -> None:
        """Report an event."""
        self._telemetry.marker(marker)

    def set_paused(self, paused: bool, step: int) -> None:
        """Report that the job has paused or resumed."""
        self._telemetry.set_state(RunState.PAUSED if paused else RunState.RUNNING, step)

    def state_dict(self) -> dict[str, Any]:
        """Return what outlives the process: cuts, results of commands, the run and attempt."""
        run_id = self._telemetry.run_id
        if run_id is None and self._resumed is not None:
            run_id = self._resumed.run_id
        return {
            "lr_override": self.override.state_dict(),
            "inbox": self.inbox.state_dict(),
            "attempt": {"run_id": run_id, "attempt_id": self.attempt_id},
            "rollbacks": self._rollbacks if self._executor is None else self._executor.rollbacks,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of a checkpoint.

        Raises:
            ControlError: The state is not one of ours.
        """
        self.override.load_state_dict(state.get("lr_override", {}))
        self.inbox.load_state_dict(state.get("inbox", {}))
        saved_rollbacks = state.get("rollbacks", 0)
        self._rollbacks = saved_rollbacks if isinstance(saved_rollbacks, int) else 0
        if (saved := state.get("attempt")) is None:  # written by version 0.1
            return
        try:
            self._resumed = ResumedFrom.model_validate(saved)
        except ValidationError as error:
            logger.warning("the checkpoint does not say which run wrote it: %s", error)

    def _introduce(self, subject: JobSubject, probes: ProbeSet) -> RunRegister:
        obstacle = subject.training.unsupported
        return RunRegister(
            protocol_version=PROTOCOL_VERSION,
            name=self.settings.run,
            key=self.settings.key,
            mode=self.settings.mode,
            policy=self.settings.policy_text(),
            config=subject.config,
            world_size=subject.world_size,
            global_batch=subject.global_batch,
            catalogs=tuple(probes.catalogs),
            git_revision=git_revision(Path.cwd()),
            rewind=RewindKind.NONE if obstacle else RewindKind.EXACT,
            rewind_reason=(obstacle or "")[:1000],
            start_step=subject.start_step,
            attempt_id=self.attempt_id,
            resumes=self._resumed,
            scheduler=scheduler_job(os.environ),
        )

    def _make_telemetry(self, register: RunRegister) -> Telemetry:
        if self.settings.url is None:
            return SoloBrain(register, self._clock, self.inbox.offer, self._take_healthy)
        return Reporter(
            self.settings.url,
            register,
            token=self.settings.token,
            clock=self._clock,
            transport=self._transport,
            settings=self._reporting,
            on_answer=self._take_answer,
        )

    def _take_answer(self, answer: BatchAnswer) -> None:
        """Any thread."""
        self._take_healthy(answer.healthy_snapshots)
        self.inbox.offer(answer.commands, run_id=self._telemetry.run_id)

    def _take_healthy(self, ids: Sequence[str]) -> None:
        self.ring.healthy = tuple(ids)

    def _report_result(self, result: CommandResult) -> None:
        self._telemetry.result(result)

    def _take_snapshot(self, subject: JobSubject) -> None:
        step = subject.training.step
        newest = self.ring.inventory()[-1:]
        is_due = step % self.settings.snapshot_every == 0 or not newest
        if not is_due or (newest and newest[0].step == step):
            return
        self.ring.make_room()
        snapshot = subject.take_snapshot(self.ring.next_id(step), self.attempt)
        if snapshot is None:
            return
        info = snapshot.info.model_copy(update={"attempt_id": self.attempt_id})
        snapshot = replace(snapshot, info=info)
        self.ring.add(snapshot)
        if self._executor is not None:
            self._executor.note_snapshot(snapshot)
        self._report_snapshots()

    def _report_snapshots(self) -> None:
        self._telemetry.set_snapshots(self.ring.inventory())

    def _close(self, state: RunState, step: int, message: str) -> None:
        self._is_open = False
        self._telemetry.set_state(state, step, message)
        self._telemetry.close(state, _CLOSE_SECONDS)
        if self._probes is not None:
            self._probes.detach()
        self.override.detach()
        self.ring.clear()


def derive_attempt_id(first_id: str, number: int) -> str:
    """Return the id of a later attempt of the same process; the same on every rank."""
    return uuid.uuid5(uuid.UUID(first_id), str(number)).hex


def scheduler_job(environment: Mapping[str, str]) -> SchedulerJob | None:
    """Return how the scheduler names this job, from its environment; None without a scheduler.

    Slurm goes before torchelastic, whose run id may be new after a requeue.

    Source:
        sbatch(1), "Output Environment Variables"; torch.distributed.run, "Environment Variables".
    """
    job = environment.get("SLURM_JOB_ID", "")
    restarts = environment.get("SLURM_RESTART_COUNT", "")
    if array := environment.get("SLURM_ARRAY_JOB_ID", ""):
        job = f"{array}_{environment.get('SLURM_ARRAY_TASK_ID', '')}"
    scheduler = f"slurm:{environment.get('SLURM_CLUSTER_NAME', '')}"
    if not job:
        job = environment.get("TORCHELASTIC_RUN_ID", "")
        restarts = environment.get("TORCHELASTIC_RESTART_COUNT", "")
        scheduler = "torchelastic"
        if job == "none":  # torchrun's default, the same for every job
            return None
    count = int(restarts) if restarts.isascii() and restarts.isdigit() else 0
    try:
        return SchedulerJob(id=f"{scheduler}:{job}", restarts=count) if job else None
    except ValidationError:
        logger.warning("the scheduler's id of this job is not usable: %.300r", job)
        return None


def git_revision(start: Path) -> str | None:
    """Find the commit that is checked out in or above a folder; None if there is none to read."""
    for folder in (start, *start.parents):
        entry = folder / ".git"
        if entry.exists():
            return _read_head(entry)
    return None


def _read_head(entry: Path) -> str | None:
    try:
        if entry.is_file():  # a worktree or submodule points to its folder
            entry = entry.parent / entry.read_text().removeprefix("gitdir:").strip()
        head = (entry / "HEAD").read_text().strip()
        return head if _HASH.match(head) else _resolve(entry, head.removeprefix("ref:").strip())
    except (OSError, UnicodeDecodeError):
        return None


def _resolve(entry: Path, reference: str) -> str | None:
    common = entry / "commondir"
    shared = (entry / common.read_text().strip()) if common.exists() else entry
    for folder in (entry, shared):
        if (folder / reference).is_file():
            text = (folder / reference).read_text().strip()
            return text if _HASH.match(text) else None
    packed = shared / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    found = (line.split()[0] for line in lines if line.endswith(f" {reference}"))
    return next((text for text in found if _HASH.match(text)), None)
