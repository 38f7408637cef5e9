"""How fast a run is: tokens per second, how much of the device that uses, and waiting for data."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from torch import Tensor
from typing_extensions import override

from stabilizer.clock import Clock, SystemClock
from trainer.data import StreamLoader
from trainer.module import MetricLog

_FETCH: Final = "[_TrainingEpochLoop].train_dataloader_next"
_RECENT_STEPS: Final = 50


class DataWait(Profiler):
    """Measures the time in which training waits for the next batch; Lightning says when."""

    def __init__(self, clock: Clock | None = None) -> None:
        """Have waited for nothing."""
        super().__init__()
        self._clock = clock or SystemClock()
        self._began = 0.0
        self._seconds = 0.0

    def take(self) -> float:
        """Return the seconds since the last call, and begin anew."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    @override
    def start(self, action_name: str) -> None:
        """An action begins."""
        if action_name == _FETCH:
            self._began = self._clock.monotonic()

    @override
    def stop(self, action_name: str) -> None:
        """An action ends."""
        if action_name == _FETCH:
            self._seconds += self._clock.monotonic() - self._began


@dataclass(frozen=True, slots=True)
class _Step:
    tokens: Tensor | int
    """Of all ranks."""
    sequences: int
    """Of this rank."""
    seconds: float


class Throughput(Callback):
    """Reports, at every step, `tokens_per_second`, `mfu`, `data_wait_seconds` and `loss_scale`.

    Tokens are those of the sequences without padding, counted on this rank and multiplied by the
    number of ranks, which all get as many sequences. The time is that from the end of one step to
    the end of the next, everything included. `mfu` is the part of `peak_flops` that the model's own
    operations use. The health of the data goes with them. Put it in front of the agent's callback,
    which closes the step.
    """

    def __init__(
        self,
        *,
        wait: DataWait,
        loader: StreamLoader | None = None,
        flops_per_sequence: int = 0,
        peak_flops: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        """Measure.

        Args:
            wait: The trainer's profiler.
            loader: Whose health is reported.
            flops_per_sequence: Operations of one sequence in a step, forward and backward.
            peak_flops: Of one device, per second; 0: no `mfu`.
            clock: Time.
        """
        self._wait = wait
        self._loader = loader
        self._flops = flops_per_sequence
        self._peak = peak_flops
        self._clock = clock or SystemClock()
        self._step = 0
        self._ended = 0.0
        self._tokens: Tensor | int = 0
        self._sequences = 0
        self._recent: deque[_Step] = deque(maxlen=_RECENT_STEPS)

    @property
    def tokens_per_second(self) -> float | None:
        """Mean over the newest 50 steps, over all ranks; None before the first one."""
        seconds = sum(step.seconds for step in self._recent)
        return float(sum(step.tokens for step in self._recent)) / seconds if seconds else None

    @property
    def mfu(self) -> float | None:
        """Mean over the newest 50 steps, on this rank; None without `peak_flops`."""
        seconds = sum(step.seconds for step in self._recent)
        if not seconds or not self._peak:
            return None
        sequences = sum(step.sequences for step in self._recent)
        return self._flops * sequences / seconds / self._peak

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin; the first step counts from here."""
        self._step = trainer.global_step
        self._ended = self._clock.monotonic()
        self._recent.clear()
        self._wait.take()
        self._tokens, self._sequences = 0, 0

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the tokens; they stay on their device."""
        if trainer.global_step < self._step:  # rewound: the step that was begun never ended
            self._step = trainer.global_step
            self._tokens, self._sequences = 0, 0
        self._tokens = self._tokens + batch["attention_mask"].sum()
        self._sequences += len(batch["attention_mask"])

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Report if this microbatch completed a step."""
        if trainer.global_step == self._step:
            return
        now = self._clock.monotonic()
        seconds = max(now - self._ended, 1e-9)
        step = _Step(self._tokens * trainer.world_size, self._sequences, seconds)
        self._recent.append(step)
        job: MetricLog | None = getattr(pl_module, "stabilizer_job", None)
        if job is not None:
            self._report(job, trainer, step)
        self._step, self._ended = trainer.global_step, now
        self._tokens, self._sequences = 0, 0

    def _report(self, job: MetricLog, trainer: Trainer, step: _Step) -> None:
        job.log("tokens_per_second", step.tokens / step.seconds)
        job.log("data_wait_seconds", self._wait.take())
        if self._peak:
            job.log("mfu", self._flops * step.sequences / step.seconds / self._peak)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            job.log("loss_scale", float(scaler.get_scale()))
        if self._loader is not None:
            for metric in self._loader.health:
                job.log(metric.name, metric.value, **metric.labels)
