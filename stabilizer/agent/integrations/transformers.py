"""`watch_trainer`: connects a transformers `Trainer` with one line, before `trainer.train()`.

watch_trainer(trainer, url="http://collector:8000", run="my-run")

Commands are applied before the batches of a step are read. A rollback restores the state in place,
leaves the running epoch by an exception, and runs the epoch again from the restored position,
through the path by which the trainer itself resumes in the middle of an epoch.
"""
# ruff: noqa: SLF001  rewinding in place needs the Trainer's internals; find_obstacle checks them

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.distributed as dist
import transformers.trainer as trainer_module
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from stabilizer.agent.control.agreement import Agreement, AllRanks, SingleProcess
from stabilizer.agent.control.host_copy import HostCopier
from stabilizer.agent.control.optimizer_step import name_groups
from stabilizer.agent.integrations.job import Job, JobSubject
from stabilizer.agent.integrations.loop_training import LoopTraining
from stabilizer.agent.integrations.scaling import ScalerWatch
from stabilizer.agent.integrations.settings import JobSettings
from stabilizer.agent.integrations.transformers_data import EpochData, ResumedEpoch
from stabilizer.agent.telemetry.http import Transport
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.clock import Clock, SystemClock

logger = logging.getLogger(__name__)

_FIELDS: Final = ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "current_flos")
_NEEDED: Final = (
    "_run_epoch",
    "_inner_training_loop",
    "_load_rng_state",
    "get_batch_samples",
    "training_step",
    "callback_handler",
    "accelerator",
)
_RESUMED: Final = "stabilizer: the rest of an epoch"
"""Stands for a checkpoint where the trainer resumes in the middle of an epoch."""


class _Rewound(Exception):  # noqa: N818  not an error: leaves the epoch that was abandoned
    pass


def watch_trainer(
    trainer: Trainer,
    *,
    url: str | None,
    run: str,
    clock: Clock | None = None,
    transport: Transport | None = None,
    reporting: ReporterSettings | None = None,
    **settings: Any,  # noqa: ANN401  those of `JobSettings`
) -> WatchedTrainer:
    """Monitor a Trainer and let commands act on it.

    A rollback restores weights, buffers, optimizer, scheduler, scaler, the trainer's state and
    control, the states of callbacks that export one, random states and the position in the data.
    Skipped data counts as batches of the epoch, whose last step is kept.

    Args:
        trainer: Not yet training.
        url: Address of the collector; None evaluates the rules in the job.
        run: Name of the run.
        clock: Source of time.
        transport: Sends requests to the collector; None for HTTP.
        reporting: Sizes and timeouts of the telemetry.
        settings: Further fields of `JobSettings`: key, token, mode, policy, snapshot_every, limits
            and so on.

    Raises:
        ConfigurationError: A value is invalid.
    """
    job_settings = JobSettings(url=url, run=run, **settings)
    watched = WatchedTrainer(trainer, job_settings, clock or SystemClock(), transport, reporting)
    watched.install()
    return watched


class WatchedTrainer:
    """A Trainer under watch. Made by `watch_trainer`."""

    def __init__(
        self,
        trainer: Trainer,
        settings: JobSettings,
        clock: Clock,
        transport: Transport | None,
        reporting: ReporterSettings | None,
    ) -> None:
        self._trainer: Any = trainer
        self._settings = settings
        self._clock = clock
        self._transport = transport
        self._reporting = reporting
        self._obstacle = find_obstacle(trainer)
        self._job: Job | None = None
        self._data: EpochData | None = None
        self._training: LoopTraining | None = None
        self._scaling = ScalerWatch(None)
        self._loss: Tensor | None = None

    @property
    def job(self) -> Job | None:
        """The monitored job; None outside of `train`."""
        return self._job

    def install(self) -> None:
        """Hook into the trainer's methods, on the instance."""
        trainer = self._trainer
        trainer.add_callback(_Callback(self))
        self._wrap("_inner_training_loop", self._reporting_failures)
        if self._obstacle is None:
            self._wrap("_run_epoch", self._from_boundaries)
            self._wrap("get_batch_samples", self._after_boundary)
        self._wrap("training_step", self._measured)

    def _wrap(self, name: str, around: Callable[..., Any]) -> None:
        original = getattr(self._trainer, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  the trainer's own
            return around(original, *args, **kwargs)

        setattr(self._trainer, name, wrapped)

    # Called by the trainer.

    def begin(self, loader: Any) -> None:  # noqa: ANN401  accelerate's
        """Register the run, now that optimizer and data exist."""
        trainer, args = self._trainer, self._trainer.args
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        scaler = trainer.accelerator.scaler
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        accumulate = max(int(args.gradient_accumulation_steps), 1)
        self._data = EpochData(loader, world_size, accumulate)
        copier = HostCopier()
        self._training = training = LoopTraining(
            trainer.model, (optimizer,), self._data, copier,
            schedulers=(trainer.lr_scheduler,), scaler=scaler,
            stateful={"trainer": _TrainerFields(trainer)}, accumulate=accumulate,
            save=self._save_checkpoint, obstacle=self._obstacle,
        )  # fmt: skip
        training.step = trainer.state.global_step
        self._scaling = ScalerWatch(scaler)
        self._job = Job(
            self._settings,
            self._clock,
            on_drop=training.recycle,
            local_ranks=max(torch.cuda.device_count(), 1) if world_size > 1 else 1,
            transport=self._transport,
            reporting=self._reporting,
        )
        agreement: Agreement = AllRanks() if world_size > 1 else SingleProcess()
        self._job.start(
            JobSubject(
                model=trainer.model,
                optimizers=(optimizer,),
                groups=tuple(name_groups((optimizer,)).values()),
                training=training,
                agreement=agreement,
                take_snapshot=training.take,
                accumulate=accumulate,
                world_size=world_size,
                global_batch=args.train_batch_size * accumulate * world_size,
                start_step=training.step,
                config={"model": type(trainer.model).__name__, "trainer": type(trainer).__name__},
            )
        )
        if (reason := training.unsupported) is not None:
            logger.warning("this job cannot be rewound: %s", reason)

    def end_step(self, step: int) -> None:
        """Report a step that is complete."""
        if self._job is None or self._training is None:
            return
        if self._loss is not None:
            self._job.log_loss(self._loss)
            self._loss = None
        self._training.step = step
        if (scaling := self._scaling.after_step()) is not None:
            self._job.log_scaling(scaling)
        self._job.end_step(step)
        if self._obstacle is not None:
            self._boundary()

    def end(self) -> None:
        """Report the end of training."""
        if self._job is not None and self._training is not None:
            self._job.finish(self._training.step)
        self._release()

    def _release(self) -> None:
        if self._data is not None:
            self._data.release()
        self._job = self._data = self._training = None

    def _reporting_failures(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  the trainer's own
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            if self._job is not None and self._training is not None:
                message = f"{type(error).__name__}: {error}"[:2000]
                self._job.fail(self._training.step, message)
            self._release()
            raise

    def _measured(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  the trainer's own
        loss = original(*args, **kwargs)
        if self._job is not None:
            self._loss = loss if self._loss is None else self._loss + loss
            if self._trainer.accelerator.gradient_state.sync_gradients:
                wrapped = self._trainer.optimizer
                optimizer = getattr(wrapped, "optimizer", wrapped)
                self._job.before_optimizer_step(
                    optimizer,
                    self._trainer.model.parameters(),
                    is_first=True,
                    grad_scale=self._scaling.before_step(optimizer),
                )
        return loss

    def _after_boundary(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  the trainer's own
        if self._job is None or self._data is None or self._training is None:
            return original(*args, **kwargs)
        self._boundary()
        if self._data.is_restored:
            raise _Rewound
        if self._training.is_stopping:
            return [], None  # the epoch ends, since `control` says so
        batches, items = original(*args, **kwargs)
        self._data.consumed += len(batches)
        return batches, items

    def _boundary(self) -> None:
        if self._job is None or self._training is None:
            return
        self._job.boundary()
        self._loss = None
        self._job.begin_step(self._training.step + 1)
        if self._training.is_stopping:
            self._trainer.control.should_training_stop = True

    def _from_boundaries(self, original: Callable[..., Any], **kwargs: Any) -> None:  # noqa: ANN401  the trainer's own
        """Run an epoch; after a rollback, from there up to the end of the same epoch."""
        data, trainer, target = self._data, self._trainer, kwargs["epoch"]
        if data is None:
            original(**kwargs)
            return
        is_foreign = (
            target == kwargs["epochs_trained"] and kwargs["steps_trained_in_current_epoch"] > 0
        )
        data.begin_epoch(target, kwargs["steps_in_epoch"], is_foreign=is_foreign)
        changes: dict[str, Any] = {}
        while True:
            try:
                with _taking_rests(trainer, is_rest="train_dataloader" in changes):
                    original(**kwargs | changes)
            except _Rewound:
                changes = _rest_of_epoch(data)
                continue
            if data.epoch >= target or trainer.control.should_training_stop:
                return
            trainer.control = trainer.callback_handler.on_epoch_begin(
                trainer.args, trainer.state, trainer.control
            )
            data.begin_epoch(data.epoch + 1, kwargs["steps_in_epoch"])
            changes = {"epoch": data.epoch, "resume_from_checkpoint": None}

    def _save_checkpoint(self, name: str) -> str:
        del name  # the trainer names its checkpoints by their step
        trainer = self._trainer
        trainer._save_checkpoint(trainer.model, trial=None)
        step, folder = trainer.state.global_step, trainer.args.output_dir
        return f"{folder}/{trainer_module.PREFIX_CHECKPOINT_DIR}-{step}"


def _rest_of_epoch(data: EpochData) -> dict[str, Any]:
    """Return the arguments of `_run_epoch` by which it reads on where a rollback has led to."""
    rest = data.take_rest()
    changes: dict[str, Any] = {"epoch": data.epoch, "resume_from_checkpoint": None}
    if rest is None:  # the start of an epoch
        return changes
    return changes | {
        "train_dataloader": rest,
        "epochs_trained": data.epoch,
        "steps_trained_in_current_epoch": data.consumed,
        "resume_from_checkpoint": _RESUMED,
    }


@contextmanager
def _taking_rests(trainer: Any, *, is_rest: bool) -> Iterator[None]:  # noqa: ANN401  a Trainer
    """Let the trainer take the rest of an epoch for a loader that has skipped its first batches."""
    skip, ignore = trainer_module.skip_first_batches, trainer.args.ignore_data_skip
    load = trainer._load_rng_state

    def skip_first(dataloader: Any, num_batches: int = 0) -> Any:  # noqa: ANN401  accelerate's
        if isinstance(dataloader, ResumedEpoch):
            return dataloader
        return skip(dataloader, num_batches)

    def load_random_state(checkpoint: str | None) -> None:
        if checkpoint != _RESUMED:
            load(checkpoint)

    trainer_module.skip_first_batches = skip_first
    trainer._load_rng_state = load_random_state
    trainer.args.ignore_data_skip = ignore and not is_rest
    try:
        yield
    finally:
        trainer_module.skip_first_batches = skip
        trainer.args.ignore_data_skip = ignore
        del trainer._load_rng_state


class _TrainerFields:
    """The trainer's own state, as a part of a snapshot."""

    def __init__(self, trainer: Any) -> None:  # noqa: ANN401  a Trainer
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        """Return state, control, running sums, and the attributes of callbacks that export some."""
        trainer = self._trainer
        return {
            "state": copy.deepcopy(vars(trainer.state)),
            "control": dict(vars(trainer.control)),
            "fields": {name: getattr(trainer, name) for name in _FIELDS},
            "callbacks": [dict(each.state()["attributes"]) for each in self._exporting],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them over, in place."""
        trainer = self._trainer
        vars(trainer.state).update(state["state"])
        vars(trainer.control).update(state["control"])
        for name, value in state["fields"].items():
            setattr(trainer, name, value)
        for each, attributes in zip(self._exporting, state["callbacks"], strict=True):
            for name, value in attributes.items():
                setattr(each, name, value)

    @property
    def _exporting(self) -> list[Any]:
        handler = self._trainer.callback_handler
        return [each for each in handler.callbacks if isinstance(each, ExportableState)]


class _Callback(TrainerCallback):
    """Passes on the events of the trainer."""

    def __init__(self, watched: WatchedTrainer) -> None:
        self._watched = watched

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401  the trainer's own
        """Begin."""
        del args, state, control
        self._watched.begin(kwargs["train_dataloader"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401  the trainer's own
        """Report the step."""
        del args, control, kwargs
        self._watched.end_step(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401  the trainer's own
        """End."""
        del args, state, control, kwargs
        self._watched.end()


def find_obstacle(trainer: Any) -> str | None:  # noqa: ANN401  a Trainer
    """Return why this trainer cannot be rewound, whatever its data; None if it can."""
    missing = [name for name in _NEEDED if not hasattr(trainer, name)]
    if missing or not hasattr(trainer_module, "skip_first_batches"):
        return f"this version of transformers has no {(missing or ['skip_first_batches'])[0]}"
    for name in ("_run_epoch", "get_batch_samples", "_inner_training_loop"):
        if getattr(type(trainer), name) is not getattr(Trainer, name):
            return f"{type(trainer).__name__} overrides {name}"
    kind = str(getattr(trainer.accelerator, "distributed_type", "")).rpartition(".")[2]
    if kind not in {"NO", "MULTI_GPU", "MULTI_CPU"}:
        return f"rewinding a Trainer under {kind} is not supported"
    return None
