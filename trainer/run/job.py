"""Model, data and faults of a run, built from its configuration."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from lightning.pytorch import Callback, seed_everything

from stabilizer.errors import ConfigurationError
from trainer.config import DataConfig, RunConfig
from trainer.data import (
    PAD,
    CorpusTokenizer,
    SampleStream,
    StreamFaults,
    StreamLoader,
    open_heldout_stream,
    open_tokenizer,
    open_training_stream,
)
from trainer.faults import BadDocuments, RepeatedDocuments, show_corrupted_corpus
from trainer.module import (
    IdeficsModule,
    at_equal_size,
    build_model,
    build_skeleton,
    open_pretrained,
)
from trainer.run.faults import build_step_faults
from trainer.run.sharding import ShardedIdeficsModule

DAMAGED_FOLDER: Final = "damaged-corpus"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a fit needs, not yet started."""

    module: IdeficsModule
    loader: StreamLoader
    faults: list[Callback]
    tokenizer: CorpusTokenizer
    heldout: SampleStream | None = None
    """Documents that are never trained on; None where the corpus has none."""


def build_job(
    config: RunConfig, *, rank: int = 0, processes: int = 1, sharded: bool = False
) -> Job:
    """Build model, data and faults; the global random state is seeded here.

    Args:
        config: Everything about the run.
        rank: Of this process, from 0.
        processes: Of the run; each reads its own part of the stream.
        sharded: Whether the model will be sharded.

    Raises:
        ConfigurationError: The corpus does not fit the configuration.
    """
    config = replace(config, model=at_equal_size(config.model))
    seed_everything(config.training.seed, verbose=False)
    tokenizer = open_tokenizer(config.data)
    _check_vocabulary(config, tokenizer)
    loader = StreamLoader(
        open_training_stream(
            _corpus(config, rank),
            tokenizer,
            image_size=config.model.vision.image_size,
            seed=config.training.seed,
            fault=_stream_faults(config, tokenizer),
        ),
        batch_size=config.data.batch_size,
        workers=config.data.workers,
        rank=rank,
        world_size=processes,
        epoch_samples=config.data.epoch_samples,
        accumulate=config.training.accumulate,
    )
    heldout = open_heldout_stream(
        config.data, tokenizer, image_size=config.model.vision.image_size
    )  # read at the end, but what is wrong with it is told now
    module = _build_module(config, tokenizer, sharded=sharded)
    if rank:  # dropout masks of its own; rank 0 draws as a run of one process does
        seed_everything(config.training.seed + rank, verbose=False)
    faults = build_step_faults(config.faults, config.training.seed)
    return Job(module, loader, faults, tokenizer, heldout)


def _build_module(config: RunConfig, tokenizer: CorpusTokenizer, *, sharded: bool) -> IdeficsModule:
    pad = tokenizer.special(PAD)
    weights = None
    if sharded and config.model.pretrained.is_given:
        model = build_skeleton(config.model, pad_token_id=pad)
        weights = open_pretrained(config.model, model)
    else:
        model = build_model(config.model, pad_token_id=pad)
    kind = ShardedIdeficsModule if sharded else IdeficsModule
    module = kind(
        model,
        config.optimizer,
        steps=config.training.steps,
        unfreeze=config.model.unfreeze,
        fused=config.training.precision != "fp16",
    )
    if isinstance(module, ShardedIdeficsModule):
        module.weights = weights
    if config.training.compile:
        _log.warning(
            "training.compile: hooks inside a compiled model are lost, so no module is measured: "
            "rules about activations, attention and gates have nothing to judge"
        )
        model.compile(backend=config.training.compile_backend)
    return module


def _check_vocabulary(config: RunConfig, tokenizer: CorpusTokenizer) -> None:
    vocabulary = tokenizer.vocabulary_size
    if vocabulary > config.model.total_vocabulary:
        raise ConfigurationError(
            f"model.vocabulary_size: {config.model.vocabulary_size} cannot be used; allowed: at "
            f"least the {vocabulary} tokens of the tokenizer in {config.data.folder}"
        )


def _corpus(config: RunConfig, rank: int) -> DataConfig:
    """Return the data's configuration, its folder damaged where that is wanted."""
    fault = config.faults.corrupted_shard
    if fault is None:
        return config.data
    view = show_corrupted_corpus(
        Path(config.data.folder),
        fault.shard,
        Path(config.training.out) / f"{DAMAGED_FOLDER}-{rank}",
        damage=fault.damage,
        part=fault.part,
        seed=config.training.seed,
    )
    _log.warning("fault corrupted_shard: %s is damaged in %s", fault.shard, view)
    return replace(config.data, folder=str(view))


def _stream_faults(config: RunConfig, tokenizer: CorpusTokenizer) -> StreamFaults:
    bad, repeated = config.faults.bad_documents, config.faults.repeated_documents
    tokens = position = None
    if bad is not None:
        _log.warning("fault bad_documents: %s", _window(bad.first_sample, bad.samples))
        tokens = BadDocuments(
            first_sample=bad.first_sample,
            samples=bad.samples,
            replacements=tokenizer.text_ids,
            kind=bad.kind,
            seed=config.training.seed,
        )
    if repeated is not None:
        _log.warning(
            "fault repeated_documents: %s", _window(repeated.first_sample, repeated.samples)
        )
        position = RepeatedDocuments(
            first_sample=repeated.first_sample,
            samples=repeated.samples,
            distinct=repeated.distinct,
        )
    return StreamFaults(tokens=tokens, position=position)


def _window(first: int, samples: int) -> str:
    return f"documents {first} to {first + samples - 1} of the stream are read otherwise"
