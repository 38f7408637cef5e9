"""`StabilizerCallback`: connects a Lightning job with one line.

Trainer(callbacks=[StabilizerCallback("http://collector:8000", run="my-run")])
"""
# ruff: noqa: SLF001  boundaries need Lightning's internals; find_obstacle checks them

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lightning.pytorch import Callback, LightningModule, Trainer
from pydantic import JsonValue, TypeAdapter, ValidationError
from torch import Tensor
from torch.optim import Optimizer

from stabilizer.agent.control.agreement import Agreement, AllRanks, SingleProcess
from stabilizer.agent.control.host_copy import HostCopier
from stabilizer.agent.control.limits import Limits
from stabilizer.agent.control.optimizer_step import GuardPolicy, name_groups
from stabilizer.agent.integrations.job import Job, JobSubject
from stabilizer.agent.integrations.lightning_data import data_ranks
from stabilizer.agent.integrations.lightning_loop import LightningFit
from stabilizer.agent.integrations.scaling import ScalerWatch
from stabilizer.agent.integrations.settings import JobSettings, choose
from stabilizer.agent.telemetry.http import Transport
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.clock import Clock, SystemClock
from stabilizer.protocol.decisions import Mode

_JSON: Final = TypeAdapter(JsonValue)
_JOB_ATTRIBUTE: Final = "stabilizer_job"


class StabilizerCallback(Callback):
    """Monitors a Lightning fit and applies commands between two optimizer steps.

    A module that declares `stabilizer_job: Job | None = None` gets the job there during fit: to log
    its own metrics, `self.stabilizer_job.log("z_loss", value)`, and to mark a change after which
    other values are normal, `self.stabilizer_job.phase("unfrozen: vision")`. Gradients are measured
    once per step; with several optimizers, when the first of them steps. `validate` and `test` are
    not monitored.

    A rollback restores weights, buffers, optimizers, schedulers, gradient scaler, loop counters,
    logged averages, torchmetrics, callbacks, random states and the position in the data; user state
    through the checkpoint hooks of modules and callbacks. Jobs that cannot be rewound are monitored
    too; they reject a rollback as `unsupported`.

    Args:
        url: Address of the collector; None evaluates the rules in the job.
        run: Name of the run.
        key: Distinguishes runs of the same name, for example a scheduler's job id.
        token: Access token, for a collector beyond loopback.
        mode: What the policy may do by itself; None takes the policy's mode.
        policy: Rule file for this run; None takes the collector's, or the one that ships.
        snapshot_every: Optimizer steps between two snapshots.
        keep_snapshots: Snapshots held in memory at most.
        snapshot_bytes: Host memory for them per rank; None shares a quarter of the machine's.
        guard: What to do with a step whose gradients are not finite.
        limits: Bounds of the commands that the job obeys, whatever the collector sends.
        max_queries: Query positions sampled per attention and step.
        attention: Whether to measure attentions.
        head: Dotted name of the module whose outputs are the logits; None for `lm_head`.
        clock: Source of time.
        transport: Sends requests to the collector; None for HTTP.
        reporting: Sizes and timeouts of the telemetry.

    Raises:
        ConfigurationError: A value is invalid.
    """

    def __init__(  # noqa: PLR0913  a job connects with one line; all but two have defaults
        self,
        url: str | None,
        *,
        run: str,
        key: str = "",
        token: str | None = None,
        mode: Mode | str | None = None,
        policy: Path | str | None = None,
        snapshot_every: int = 25,
        keep_snapshots: int = 6,
        snapshot_bytes: int | None = None,
        guard: GuardPolicy | str = GuardPolicy.OBSERVE,
        limits: Limits | None = None,
        max_queries: int = 64,
        attention: bool = True,
        head: str | None = None,
        clock: Clock | None = None,
        transport: Transport | None = None,
        reporting: ReporterSettings | None = None,
    ) -> None:
        self.settings = JobSettings(
            url=url,
            run=run,
            key=key,
            token=token,
            mode=choose(Mode, "mode", mode) if mode is not None else None,
            policy=policy,
            snapshot_every=snapshot_every,
            keep_snapshots=keep_snapshots,
            snapshot_bytes=snapshot_bytes,
            guard=choose(GuardPolicy, "guard", guard),
            limits=limits or Limits(),
            max_queries=max_queries,
            attention=attention,
            head=head,
        )
        self._clock = clock or SystemClock()
        self._transport = transport
        self._reporting = reporting
        self._job: Job | None = None
        self._fit: LightningFit | None = None
        self._scaling = ScalerWatch(None)
        self._step_open: int | None = None
        self._is_measured = False
        self._stride = 1
        """Growth of `global_step` per training step: Lightning counts every optimizer's step."""

    @property
    def job(self) -> Job | None:
        """The monitored job; None outside of fit."""
        return self._job

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hook into the loops before the data is set up."""
        if stage != "fit":
            return
        self._fit = fit = LightningFit(trainer, self, HostCopier())
        self._job = job = Job(
            self.settings,
            self._clock,
            on_drop=fit.recycle,
            local_ranks=max(trainer.num_devices, 1),
            transport=self._transport,
            reporting=self._reporting,
        )
        self._step_open = None
        fit.install(job.boundary)
        if hasattr(pl_module, _JOB_ATTRIBUTE):
            setattr(pl_module, _JOB_ATTRIBUTE, job)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register the run, now that optimizers, data and start step are known."""
        if self._job is None or self._fit is None:
            return
        self._fit.begin()
        self._scaling = ScalerWatch(getattr(trainer.precision_plugin, "scaler", None))
        accumulate = self._fit.num_gradient_batches
        self._job.start(
            JobSubject(
                model=pl_module,
                optimizers=trainer.optimizers,
                groups=tuple(name_groups(trainer.optimizers).values()),
                training=self._fit,
                agreement=_agreement(trainer),
                take_snapshot=self._fit.take,
                accumulate=accumulate,
                world_size=trainer.world_size,
                global_batch=_global_batch(trainer, accumulate),
                start_step=trainer.global_step,
                config=_config(pl_module),
            )
        )

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401  Lightning's signature
        batch_idx: int,
    ) -> None:
        """Begin a step at its first microbatch."""
        del pl_module, batch, batch_idx
        if self._job is not None and self._step_open != trainer.global_step:
            self._step_open = trainer.global_step
            self._job.begin_step(trainer.global_step + self._stride)
            self._is_measured = False

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure gradients before they are clipped; Lightning clips after this hook."""
        del trainer
        if self._job is not None:
            is_first, self._is_measured = not self._is_measured, True
            carried = self._scaling.before_step(optimizer)
            self._job.before_optimizer_step(
                optimizer, pl_module.parameters(), is_first=is_first, grad_scale=carried
            )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401  Lightning's signature
        batch: Any,  # noqa: ANN401  Lightning's signature
        batch_idx: int,
    ) -> None:
        """Log the loss; end the step at its last microbatch."""
        del batch, batch_idx
        if self._job is None or self._fit is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            # Lightning divides the loss by the number of microbatches, and our mean would again.
            divided_by = self._fit.num_gradient_batches if pl_module.automatic_optimization else 1
            self._job.log_loss(loss.detach().reshape(()) * divided_by)
        if self._step_open is not None and trainer.global_step > self._step_open:
            self._stride = trainer.global_step - self._step_open
            self._step_open = None
            if (scaling := self._scaling.after_step()) is not None:
                self._job.log_scaling(scaling)
            self._job.end_step(trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle open commands at the end of training."""
        del pl_module
        if self._job is not None:
            self._job.finish(trainer.global_step)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Report the failure and detach."""
        if self._job is not None:
            message = f"{type(exception).__name__}: {exception}"[:2000]
            self._job.fail(trainer.global_step, message)
        self._detach(pl_module)  # Lightning calls no teardown after an exception

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Detach from trainer and module."""
        if stage != "fit":
            return
        if self._job is not None:
            self._job.fail(trainer.global_step, "torn down before the end of training")
        self._detach(pl_module)

    def _detach(self, pl_module: LightningModule) -> None:
        if self._fit is not None:
            self._fit.uninstall()
        if hasattr(pl_module, _JOB_ATTRIBUTE):
            setattr(pl_module, _JOB_ATTRIBUTE, None)
        self._job = self._fit = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: learning-rate cuts and results of commands."""
        return {} if self._job is None else self._job.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of a checkpoint; called after `setup`, before training."""
        if self._job is not None:
            self._job.load_state_dict(state_dict)


def _agreement(trainer: Trainer) -> Agreement:
    return AllRanks() if trainer.world_size > 1 else SingleProcess()


def _global_batch(trainer: Trainer, accumulate: int) -> int | None:
    """Return the samples per optimizer step over all ranks; None if the loader has no size."""
    combined = trainer.fit_loop._combined_loader
    sizes = (
        [getattr(part, "batch_size", None) for part in combined.flattened]
        if combined is not None
        else []
    )
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        return None
    return int(sum(size for size in sizes if size)) * accumulate * data_ranks(trainer)


def _config(module: LightningModule) -> dict[str, JsonValue]:
    """Return the hyper-parameters as JSON values; others as text."""
    config: dict[str, JsonValue] = {}
    for name, value in dict(module.hparams).items():
        try:
            config[str(name)] = _JSON.validate_python(value)
        except ValidationError:
            config[str(name)] = repr(value)[:400]
    return config
