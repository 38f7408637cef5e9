"""Build everything from a configuration, train, and write down what came out."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

import torch
import transformers
from lightning.pytorch import Callback, Trainer, seed_everything

from stabilizer.agent import StabilizerCallback
from stabilizer.clock import Clock, SystemClock
from stabilizer.errors import ConfigurationError
from trainer.config import SOLO, RunConfig, config_to_yaml
from trainer.data import (
    PAD,
    CorpusTokenizer,
    StreamLoader,
    load_tokenizer,
    open_heldout_stream,
    open_training_stream,
)
from trainer.faults import BadDocuments, LrRestart
from trainer.module import IdeficsModule, LossRecorder, ProgressLine, as_json, build_model

LOSSES_FILE: Final = "losses.jsonl"
SUMMARY_FILE: Final = "summary.json"
CONFIG_FILE: Final = "config.yaml"
_TAIL_STEPS: Final = 25  # the final loss is a mean over these, since one batch is noisy


@dataclass(frozen=True, slots=True)
class Summary:
    """What came out of a run; `summary.json` holds the same."""

    final_loss: float
    """Mean training loss of the last 25 steps; NaN without a step."""
    heldout_loss: float | None
    """Loss per token on the held-out documents at the end; None where the corpus has none."""
    steps: int
    """Completed optimizer steps."""
    attempts: int
    """Stretches between two rewinds."""
    samples: int
    """Position in the stream at the end."""
    passed_over: int
    """Unusable documents that were met and replaced."""
    parameters: int
    """Weights of the model."""
    seconds: float
    """Time in training, without imports and building."""


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a fit needs, not yet started."""

    module: IdeficsModule
    loader: StreamLoader
    faults: list[Callback]
    tokenizer: CorpusTokenizer


def build_job(config: RunConfig) -> Job:
    """Build model, data and faults; the global random state is seeded here.

    Raises:
        ConfigurationError: The corpus does not fit the configuration.
    """
    seed_everything(config.training.seed, verbose=False)
    tokenizer = load_tokenizer(Path(config.data.folder))
    vocabulary = tokenizer.vocabulary_size
    if vocabulary > config.model.vocabulary_size:
        raise ConfigurationError(
            f"model.vocabulary_size: {config.model.vocabulary_size} cannot be used; allowed: at "
            f"least the {vocabulary} tokens of the tokenizer in {config.data.folder}"
        )
    stream = open_training_stream(
        config.data,
        tokenizer,
        image_size=config.model.vision.image_size,
        seed=config.training.seed,
        fault=_bad_documents(config, tokenizer),
    )
    loader = StreamLoader(
        stream,
        batch_size=config.data.batch_size,
        workers=config.data.workers,
        epoch_samples=config.data.epoch_samples,
    )
    model = build_model(config.model, pad_token_id=tokenizer.special(PAD))
    module = IdeficsModule(model, config.optimizer, steps=config.training.steps)
    return Job(module, loader, _step_faults(config), tokenizer)


def fit(config: RunConfig, *, token: str | None = None, clock: Clock | None = None) -> Summary:
    """Train, and write losses, summary and configuration to `training.out`.

    Args:
        config: Everything about the run.
        token: For the collector, where it wants one.
        clock: Measures the time in training.

    Raises:
        ConfigurationError: Something that was configured cannot be used.
    """
    clock = clock or SystemClock()
    torch.set_num_threads(config.training.threads)
    _silence_libraries()
    out = _prepare_out(config)
    job = build_job(config)
    began = clock.monotonic()
    with LossRecorder(out / LOSSES_FILE, clock) as recorder:
        trainer = _build_trainer(
            config, [*_watchers(config, token), *job.faults, recorder, ProgressLine()]
        )
        trainer.fit(job.module, train_dataloaders=job.loader)
    seconds = clock.monotonic() - began
    tail = recorder.losses[-_TAIL_STEPS:]
    summary = Summary(
        final_loss=fmean(tail) if tail else float("nan"),
        heldout_loss=heldout_loss(config, job),
        steps=trainer.global_step,
        attempts=recorder.attempt,
        samples=job.loader.samples,
        passed_over=job.loader.passed_over,
        parameters=sum(parameter.numel() for parameter in job.module.parameters()),
        seconds=round(seconds, 3),
    )
    content = {name: as_json(value) for name, value in asdict(summary).items()}
    (out / SUMMARY_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return summary


@torch.no_grad()
def heldout_loss(config: RunConfig, job: Job) -> float | None:
    """Return the loss per token over one pass of the held-out documents, dropout off.

    Every source's documents count as often as its weight in the mixture says.
    """
    stream = open_heldout_stream(
        config.data, job.tokenizer, image_size=config.model.vision.image_size
    )
    if stream is None:
        return None
    loader = StreamLoader(stream, batch_size=config.data.batch_size)
    job.module.eval()
    total, count = 0.0, 0
    for batch in loader:
        losses = job.module.losses(batch)
        total += float(losses.cross_entropy.sum())
        count += int(losses.counted.sum())
    job.module.train()
    return total / max(count, 1)


def _bad_documents(config: RunConfig, tokenizer: CorpusTokenizer) -> BadDocuments | None:
    fault = config.faults.bad_documents
    if fault is None:
        return None
    return BadDocuments(
        first_sample=fault.first_sample,
        samples=fault.samples,
        replacements=tokenizer.text_ids,
        kind=fault.kind,
        seed=config.training.seed,
    )


def _step_faults(config: RunConfig) -> list[Callback]:
    fault = config.faults.lr_restart
    return [] if fault is None else [LrRestart(step=fault.step, factor=fault.factor)]


def _watchers(config: RunConfig, token: str | None) -> list[Callback]:
    monitor = config.monitor
    if monitor.collector is None:
        return []
    policy = None if monitor.policy is None else Path(monitor.policy)
    if policy is not None and not policy.is_file():
        raise ConfigurationError(f"monitor.policy: {policy} does not exist; allowed: a rule file")
    return [
        StabilizerCallback(
            None if monitor.collector == SOLO else monitor.collector,
            run=monitor.run,
            token=token,
            mode=monitor.mode,
            policy=policy,
            snapshot_every=monitor.snapshot_every,
            keep_snapshots=monitor.keep_snapshots,
        )
    ]


def _build_trainer(config: RunConfig, callbacks: list[Callback]) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=config.training.steps,
        max_epochs=-1,
        accumulate_grad_batches=config.training.accumulate,
        gradient_clip_val=config.optimizer.gradient_clip or None,
        deterministic=True,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        default_root_dir=config.training.out,
    )


def _prepare_out(config: RunConfig) -> Path:
    out = Path(config.training.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / CONFIG_FILE).write_text(config_to_yaml(config), encoding="utf-8")
        (out / SUMMARY_FILE).unlink(missing_ok=True)  # that of an earlier run would mislead
    except OSError as error:
        raise ConfigurationError(f"training.out: {out} cannot be written: {error}") from error
    return out


def _silence_libraries() -> None:
    """Keep the libraries' hints about themselves from people who train; errors still show."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
