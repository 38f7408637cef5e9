"""`watch`: connects a training loop written by hand, in any PyTorch code.

with watch(model, optimizers=optimizer, loaders=loader, url="http://host:8000", run="x") as job:
    for batch in job.batches(epochs=3):
        loss = ...
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        job.step(loss)

`batches` reads the loaders, applies commands between two steps, and repeats data after a rollback;
that is why the loop reads from it. A loop that reads its data otherwise is measured, and its rate
can be cut; it cannot be rewound.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

import torch
import torch.distributed as dist
from pydantic import JsonValue
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from stabilizer.agent.control.agreement import Agreement, AllRanks, SingleProcess
from stabilizer.agent.control.host_copy import HostCopier
from stabilizer.agent.control.optimizer_step import name_groups
from stabilizer.agent.integrations.job import Job, JobSubject
from stabilizer.agent.integrations.loop_training import LoopData, LoopTraining, StatefulObject
from stabilizer.agent.integrations.scaling import ScalerWatch
from stabilizer.agent.integrations.settings import JobSettings
from stabilizer.agent.telemetry.http import Transport
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.clock import Clock, SystemClock
from stabilizer.errors import ConfigurationError

logger = logging.getLogger(__name__)

_NO_DATA: Final = "the loop reads its data by itself; give watch(loaders=...) and use job.batches()"


class LoopJob:
    """A monitored loop. Made by `watch`; use it in a `with` statement.

    A rollback restores weights, buffers, modes, optimizers, schedulers, the gradient scaler, the
    objects in `stateful`, random states and the position in the data. It does not restore variables
    of the loop, such as running means.
    """

    def __init__(
        self,
        job: Job,
        training: LoopTraining,
        data: LoopData | None,
        subject: JobSubject,
        scaling: ScalerWatch,
    ) -> None:
        self._job = job
        self._training = training
        self._data = data
        self._subject = subject
        self._scaling = scaling
        self._handles: list[RemovableHandle] = []
        self._begun: tuple[int, int] | None = None
        self._is_reading = False
        self._is_measured = False

    def __enter__(self) -> Self:
        """Register the run and attach the hooks."""
        self._job.start(self._subject)
        if (reason := self._training.unsupported) is not None:
            logger.warning("this job cannot be rewound: %s", reason)
        # After the agent's own hooks, which set the rate.
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step)
            for optimizer in self._subject.optimizers
        ]
        self._begin_step()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Report how the job ended, and detach."""
        for handle in self._handles:
            handle.remove()
        if error is None:
            self._job.finish(self.global_step)
        else:
            self._job.fail(self.global_step, f"{type(error).__name__}: {error}"[:2000])

    @property
    def global_step(self) -> int:
        """Completed optimizer steps; smaller after a rollback."""
        return self._training.step

    @property
    def epoch(self) -> int:
        """Passes through the data that are complete."""
        return self._training.epoch

    @property
    def should_stop(self) -> bool:
        """Whether the job was told to stop; `batches` ends by itself then."""
        return self._training.is_stopping

    @property
    def attempt(self) -> int:
        """Number of the attempt in this process, from 1; a rollback begins another one."""
        return self._job.attempt

    def batches(self, *, epochs: int | None = None, steps: int | None = None) -> Iterator[Any]:
        """Yield batches until so many passes or optimizer steps are complete, or a stop.

        Commands are applied, and snapshots taken, before a batch is read, if a step has ended since
        the last time. Of several loaders it yields tuples, until the first of them is exhausted.
        `set_epoch` of samplers and datasets is called at the start of a pass.

        Args:
            epochs: Passes through the data in all; None for no end.
            steps: Optimizer steps in all; None for no end.

        Raises:
            ConfigurationError: `watch` was given no loaders.
            RestoreError: A rollback failed half way; the job must not continue.
        """
        data = self._data
        if data is None:
            raise ConfigurationError(_NO_DATA)
        self._is_reading = True
        self._training.bounds = (epochs, steps)
        data.begin()
        while not self._training.is_ending:
            self._job.boundary()
            self._begin_step()
            step = self.global_step
            if self._training.is_stopping:
                return
            while self.global_step == step and not self._training.is_ending:
                batch = data.next()
                if batch is not None:
                    yield batch[0] if len(batch) == 1 else batch
                elif data.is_empty:
                    return

    def after_backward(self) -> None:
        """Measure the gradients; call it between backward and clipping.

        Without this call they are measured when the optimizer steps, after clipping.
        """
        if not self._is_measured:
            self._measure(self._subject.optimizers[0])

    def step(self, loss: Tensor | float | None = None) -> None:
        """End an optimizer step; call it after the optimizer and the scheduler.

        Args:
            loss: Of the last microbatch, not divided by the number of microbatches; None if it was
                logged with `log_loss`.
        """
        if loss is not None:
            self.log_loss(loss)
        self._training.step += 1
        if (scaling := self._scaling.after_step()) is not None:
            self._job.log_scaling(scaling)
        self._job.end_step(self.global_step)
        if not self._is_reading:
            self._job.boundary()
            self._begin_step()

    def log_loss(self, loss: Tensor | float) -> None:
        """Log the loss of a microbatch; of several in a step the mean counts."""
        self._job.log_loss(loss.detach().reshape(()) if isinstance(loss, Tensor) else loss)

    def log(self, name: str, value: Tensor | float, **labels: str) -> None:
        """Log a value of a metric at this step; a tensor stays on its device."""
        self._job.log(name, value, **labels)

    def phase(self, text: str) -> None:
        """Mark that training changes from the next step on: other values become normal."""
        self._job.phase(text)

    def state_dict(self) -> dict[str, Any]:
        """Return what belongs into a checkpoint: step, data position, cuts, command results."""
        return {"job": self._job.state_dict(), "training": self._training.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of a checkpoint, before the `with` statement.

        Raises:
            ControlError: The state is not one of ours.
        """
        self._training.load_state_dict(state["training"])
        self._job.load_state_dict(state["job"])
        self._subject = replace(self._subject, start_step=self._training.step)

    def _begin_step(self) -> None:
        """Begin the next step of this attempt, once."""
        begun = (self.attempt, self.global_step + 1)
        if begun != self._begun:
            self._begun = begun
            self._is_measured = False
            self._job.begin_step(self.global_step + 1)

    def _before_step(self, optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        self._measure(optimizer)

    def _measure(self, optimizer: Optimizer) -> None:
        is_first, self._is_measured = not self._is_measured, True
        self._job.before_optimizer_step(
            optimizer,
            self._subject.model.parameters(),
            is_first=is_first,
            grad_scale=self._scaling.before_step(optimizer),
        )


def watch(  # noqa: PLR0913  a loop connects with one call; most have defaults
    model: nn.Module,
    *,
    optimizers: Optimizer | Sequence[Optimizer],
    loaders: Any = None,  # noqa: ANN401  one loader, a sequence of loaders, or None
    url: str | None,
    run: str,
    schedulers: Sequence[StatefulObject] = (),
    scaler: Any = None,  # noqa: ANN401  a torch.amp.GradScaler
    stateful: Mapping[str, StatefulObject] | None = None,
    accumulate: int = 1,
    save_checkpoint: Callable[[str], str] | None = None,
    config: Mapping[str, JsonValue] | None = None,
    clock: Clock | None = None,
    transport: Transport | None = None,
    reporting: ReporterSettings | None = None,
    **settings: Any,  # noqa: ANN401  those of `JobSettings`
) -> LoopJob:
    """Monitor a loop and let commands act on it. All ranks of a distributed job call it.

    Args:
        model: The model in training, with or without wrappers.
        optimizers: One or several.
        loaders: What `job.batches()` reads: a DataLoader or any iterable; several are read in step.
            None if the loop reads its data itself: then it cannot be rewound.
        url: Address of the collector; None evaluates the rules in the job.
        run: Name of the run.
        schedulers: Learning-rate schedulers, or anything with state_dict and load_state_dict.
        scaler: The gradient scaler, if there is one.
        stateful: Further objects to rewind, by name, for example an average of the weights.
        accumulate: Microbatches per optimizer step.
        save_checkpoint: Called on command, on all ranks, with a name; writes a checkpoint and
            returns its path. None lets the command fail.
        config: Shown on the run's page.
        clock: Source of time.
        transport: Sends requests to the collector; None for HTTP.
        reporting: Sizes and timeouts of the telemetry.
        settings: Further fields of `JobSettings`: key, token, mode, policy, snapshot_every, limits
            and so on.

    Raises:
        ConfigurationError: A value is invalid.
    """
    job_settings = JobSettings(url=url, run=run, **settings)
    every = _listed_optimizers(optimizers)
    if accumulate < 1:
        raise ConfigurationError(f"accumulate is {accumulate}; allowed: 1 or more")
    data = None if loaders is None else LoopData(_listed(loaders), _world_size())
    training = LoopTraining(
        model, every, data, HostCopier(),
        schedulers=tuple(schedulers), scaler=scaler, stateful=dict(stateful or {}),
        accumulate=accumulate, save=save_checkpoint, obstacle=_NO_DATA if data is None else None,
    )  # fmt: skip
    job = Job(
        job_settings, clock or SystemClock(), on_drop=training.recycle, local_ranks=_local_ranks(),
        transport=transport, reporting=reporting,
    )  # fmt: skip
    subject = _subject(model, every, data, training, accumulate, config or {})
    return LoopJob(job, training, data, subject, ScalerWatch(scaler))


def _subject(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    data: LoopData | None,
    training: LoopTraining,
    accumulate: int,
    config: Mapping[str, JsonValue],
) -> JobSubject:
    world_size = _world_size()
    batch = None if data is None else data.batch_size
    agreement: Agreement = AllRanks() if world_size > 1 else SingleProcess()
    return JobSubject(
        model=model,
        optimizers=optimizers,
        groups=tuple(name_groups(optimizers).values()),
        training=training,
        agreement=agreement,
        take_snapshot=training.take,
        accumulate=accumulate,
        world_size=world_size,
        global_batch=None if batch is None else batch * accumulate * world_size,
        config=dict(config),
    )


def _listed_optimizers(optimizers: Optimizer | Sequence[Optimizer]) -> tuple[Optimizer, ...]:
    every = (optimizers,) if isinstance(optimizers, Optimizer) else tuple(optimizers)
    if not every:
        raise ConfigurationError("optimizers is empty; allowed: one or more")
    return every


def _listed(loaders: Any) -> list[Iterable[Any]]:  # noqa: ANN401  see `watch`
    return list(loaders) if isinstance(loaders, list | tuple) else [loaders]


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _local_ranks() -> int:
    """Return how many ranks share this machine's memory."""
    if _world_size() > 1 and torch.cuda.is_available():
        return max(torch.cuda.device_count(), 1)
    return _world_size()
