"""Speed of a job: steps, tokens and model FLOPs per second."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import override

from stabilizer.clock import Clock, SystemClock
from trainer.config import ModelConfig, RunConfig
from trainer.data import StreamLoader
from trainer.module import MetricLog, build_skeleton


def training_flops(config: RunConfig) -> int:
    """Return the floating-point operations of one sequence in one step, forward and backward.

    Only necessary operations count: a frozen matrix has no gradient of its own, although gradients
    pass through it, and a frozen vision encoder has no backward pass. Parts that unfreeze later
    count as frozen. Recomputation for activation checkpointing does not count (PaLM,
    arXiv:2204.02311, appendix B).
    """
    data, size = config.data, config.model.vision.image_size
    model = build_skeleton(_without_looking(config.model)).train()
    with torch.device("meta"):
        inputs = {
            "input_ids": torch.zeros(1, data.sequence_length, dtype=torch.long),
            "attention_mask": torch.ones(1, data.sequence_length, dtype=torch.long),
            "pixel_values": torch.zeros(1, data.max_images, 3, size, size),
            "image_attention_mask": torch.ones(
                1, data.sequence_length, data.max_images, dtype=torch.long
            ),
        }
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        logits = model(**inputs, use_cache=False).logits
        if logits.requires_grad:  # else everything is frozen
            logits.sum().backward()
    return int(counter.get_total_flops())


def _without_looking(model: ModelConfig) -> ModelConfig:
    """Return a model with the same operations that reads no values, since none are allocated.

    Fused attention reads the mask, and additional tokens are searched for in the input: here they
    are ordinary rows of the vocabulary.
    """
    return replace(
        model,
        activation_checkpointing=False,
        attention="eager",
        vocabulary_size=model.total_vocabulary,
        additional_tokens=0,
    )


_FETCH: Final = "[_TrainingEpochLoop].train_dataloader_next"
_RECENT_STEPS: Final = 50


class DataWait(Profiler):
    """Measures how long training waits for the next batch, as a profiler of Lightning."""

    def __init__(self, clock: Clock | None = None) -> None:
        """Start at zero."""
        super().__init__()
        self._clock = clock or SystemClock()
        self._began = 0.0
        self._seconds = 0.0

    def take(self) -> float:
        """Return the seconds since the last call, and restart the clock."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    @override
    def start(self, action_name: str) -> None:
        """Begin an action."""
        if action_name == _FETCH:
            self._began = self._clock.monotonic()

    @override
    def stop(self, action_name: str) -> None:
        """End an action."""
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
    """Reports, at every step, `tokens_per_second`, `mfu` and `data_wait_seconds`.

    Tokens are counted without padding on this rank and multiplied by the number of ranks, which all
    read the same number of sequences. Times are measured from the end of one step to the end of the
    next. `mfu` is the fraction of `peak_flops` that the operations of the model use. The counters
    of the data are reported as well. Put it before the agent's callback, which closes the step.
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
            self._report(job, step)
        self._step, self._ended = trainer.global_step, now
        self._tokens, self._sequences = 0, 0

    def _report(self, job: MetricLog, step: _Step) -> None:
        job.log("tokens_per_second", step.tokens / step.seconds)
        job.log("data_wait_seconds", self._wait.take())
        if self._peak:
            job.log("mfu", self._flops * step.sequences / step.seconds / self._peak)
        if self._loader is not None:
            for metric in self._loader.health:
                job.log(metric.name, metric.value, **metric.labels)
