"""Fit a run: its trainer, callbacks and the agent that watches it."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import torch
import transformers
from lightning.pytorch import Callback, Trainer

from stabilizer.agent import StabilizerCallback
from stabilizer.clock import Clock, SystemClock
from stabilizer.errors import ConfigurationError
from stabilizer.protocol.batches import SnapshotInfo
from trainer.checkpoints import Checkpoints, RandomStates
from trainer.config import SOLO, MonitorConfig, RunConfig, config_to_yaml, find_policy
from trainer.data.records import LEDGER_FOLDER, SampleLedger, StreamRecorder
from trainer.module import LossRecorder, ProgressLine, at_equal_size
from trainer.run.devices import choose_devices
from trainer.run.job import TrainingJob, build_job
from trainer.run.resuming import ConfiguredRates, Resume, choose_resume, facts_of, store_of
from trainer.run.summary import Summary, heldout_loss
from trainer.run.throughput import DataWait, Throughput, training_flops

_SECRETS: Final = re.compile(r"(?<=://)[^/@\s]*@|\?[\w.-]+=\S*\Z")
"""Credentials in a URL: a user with a password, and a signed query."""


def build_watcher(monitor: MonitorConfig, *, token: str | None) -> StabilizerCallback | None:
    """Return the agent's callback; None without monitoring.

    Args:
        monitor: The connection to a collector.
        token: Token for the collector, if it requires one.

    Raises:
        ConfigurationError: The policy file is missing or invalid.
    """
    if monitor.collector is None:
        return None
    return StabilizerCallback(
        None if monitor.collector == SOLO else monitor.collector,
        run=monitor.run,
        key=monitor.key,
        token=token,
        mode=monitor.mode,
        policy=None if monitor.policy is None else find_policy(monitor.policy),
        snapshot_every=monitor.snapshot_every,
        keep_snapshots=monitor.keep_snapshots,
    )


def registered_config(config: RunConfig) -> dict[str, Any]:
    """Return a configuration for the collector: without credentials.

    URLs of data lose everything before the host and after the path.
    """
    fields: dict[str, Any] = json.loads(json.dumps(asdict(config)), object_pairs_hook=_without)
    return fields


def _without(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {name: _bare(value) for name, value in pairs}


def _bare(value: Any) -> Any:  # noqa: ANN401  JSON
    if isinstance(value, str) and "://" in value:
        return _SECRETS.sub("", value)
    return [_bare(one) for one in value] if isinstance(value, list) else value


class MonitorHealth:
    """The collector's view of the snapshots of a monitored run."""

    def __init__(self, watcher: StabilizerCallback) -> None:
        """Read from the agent of this run."""
        self._watcher = watcher

    @property
    def attempt(self) -> int:
        """Number of the current attempt."""
        job = self._watcher.job
        return 0 if job is None else job.attempt

    def healthy(self) -> Iterable[SnapshotInfo]:
        """Return the snapshots that are still held and that the collector calls healthy."""
        job = self._watcher.job
        if job is None:
            return []
        return [info for info in job.ring.inventory() if info.id in job.ring.healthy]


LOSSES_FILE: Final = "losses.jsonl"
SUMMARY_FILE: Final = "summary.json"
CONFIG_FILE: Final = "config.yaml"
_TAIL_STEPS: Final = 25  # the final loss is a mean over these, since one batch is noisy


def fit(
    config: RunConfig,
    *,
    token: str | None = None,
    clock: Clock | None = None,
    resume: str | None = None,
) -> Summary:
    """Train, and write losses, summary and configuration to `training.out`.

    Args:
        config: Everything about the run.
        token: For the collector, where it wants one.
        clock: Measures the time in training.
        resume: latest, auto or a checkpoint's folder, to resume from; None: start from scratch.

    Returns:
        What came out; on ranks other than 0 as far as they know it.

    Raises:
        ConfigurationError: The configuration is invalid for this machine or corpus.
    """
    clock = clock or SystemClock()
    torch.set_num_threads(config.training.threads)
    silence_libraries()
    config = replace(config, model=at_equal_size(config.model))
    devices = choose_devices(config.training)
    found = choose_resume(config, resume)
    watcher = build_watcher(config.monitor, token=token)
    wait = DataWait(clock)
    trainer = Trainer(
        max_steps=config.training.steps,
        max_epochs=-1,
        accumulate_grad_batches=config.training.accumulate,
        gradient_clip_val=config.optimizer.gradient_clip or None,
        callbacks=[],
        logger=False,
        profiler=wait,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        default_root_dir=config.training.out,
        **devices.trainer_options(config.training),
    )
    if trainer.is_global_zero:
        _open_out(config)
    job = build_job(
        config,
        rank=trainer.global_rank,
        processes=trainer.world_size,
        sharded=devices.is_sharded,
    )
    job.module.hparams.update(registered_config(config))  # what the agent registers
    if trainer.is_global_zero:
        _begin_out(config)  # nothing was wrong: what an earlier run has left there may go
    return _Run(config, trainer, job, watcher, wait, clock).train(found)


@dataclass(frozen=True, slots=True)
class _Run:
    """A run on this process, everything built."""

    config: RunConfig
    trainer: Trainer
    job: TrainingJob
    watcher: StabilizerCallback | None
    wait: DataWait
    clock: Clock

    def train(self, resume: Resume | None) -> Summary:
        config, trainer = self.config, self.trainer
        throughput = self._throughput()
        recorder: LossRecorder | None = None
        began = self.clock.monotonic()
        with ExitStack() as closing:
            if trainer.is_global_zero:
                path = Path(config.training.out) / LOSSES_FILE
                step = None if resume is None else resume.step
                recorder = closing.enter_context(LossRecorder(path, self.clock, resumed_step=step))
            callbacks = self._callbacks(throughput, recorder, resume)
            trainer.callbacks = callbacks  # type: ignore[attr-defined]  # set by a connector, untyped
            path_to_load = None if resume is None else str(resume.path)
            trainer.fit(self.job.module, train_dataloaders=self.job.loader, ckpt_path=path_to_load)
        seconds = self.clock.monotonic() - began
        tail = recorder.losses[-_TAIL_STEPS:] if recorder is not None else []
        summary = Summary(
            final_loss=fmean(tail) if tail else float("nan"),
            heldout_loss=heldout_loss(config, self.job, trainer.strategy.reduce_boolean_decision),
            steps=trainer.global_step,
            attempts=recorder.attempt if recorder is not None else 0,
            samples=self.job.loader.samples,
            passed_over=self.job.loader.passed_over,
            parameters=sum(parameter.numel() for parameter in self.job.module.parameters()),
            seconds=round(seconds, 3),
            tokens_per_second=throughput.tokens_per_second,
            mfu=throughput.mfu,
            rank=trainer.global_rank,
        )
        if trainer.is_global_zero:
            summary.write(Path(config.training.out) / SUMMARY_FILE)
        return summary

    def _callbacks(
        self,
        throughput: Throughput,
        recorder: LossRecorder | None,
        resume: Resume | None,
    ) -> list[Callback]:
        """Return all callbacks: faults, then monitoring, then checkpoints."""
        config, watcher = self.config, self.watcher
        callbacks: list[Callback] = [ConfiguredRates(config), *self.job.faults, throughput]
        if watcher is not None:
            callbacks.append(watcher)
        if recorder is not None:
            seconds = config.training.log_seconds
            callbacks += [recorder, ProgressLine(clock=self.clock, log_seconds=seconds)]
        callbacks += [*self._stream_recorder(resumes=resume is not None), RandomStates()]
        if config.training.checkpoint_every:
            callbacks.append(
                Checkpoints(
                    store_of(config),
                    every=config.training.checkpoint_every,
                    facts=facts_of(config),
                    health=None if watcher is None else MonitorHealth(watcher),
                    resumed=None if resume is None else resume.path,
                )
            )
        return callbacks

    def _stream_recorder(self, *, resumes: bool) -> list[Callback]:
        max_bytes = self.config.data.ledger_mebibytes * 2**20
        if not max_bytes:
            return []
        folder = Path(self.config.training.out) / LEDGER_FOLDER
        rank = self.trainer.global_rank
        ledger = SampleLedger.begin(folder, max_bytes, rank=rank, resumes=resumes)
        return [StreamRecorder(ledger, self.job.loader)]

    def _throughput(self) -> Throughput:
        peak = self.config.training.peak_flops
        return Throughput(
            wait=self.wait,
            loader=self.job.loader,
            flops_per_sequence=training_flops(self.config) if peak else 0,
            peak_flops=peak,
            clock=self.clock,
        )


def _open_out(config: RunConfig) -> None:
    out = Path(config.training.out)
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):  # reported before all weights are loaded
            raise PermissionError(errno.EACCES, "permission denied")


def _begin_out(config: RunConfig) -> None:
    out = Path(config.training.out)
    with _writing(out):
        (out / CONFIG_FILE).write_text(config_to_yaml(config), encoding="utf-8")
        (out / SUMMARY_FILE).unlink(missing_ok=True)  # that of an earlier run would mislead


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"training.out: {out} cannot be written: {error}") from error


def silence_libraries() -> None:
    """Hide hints of libraries; show only errors."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
