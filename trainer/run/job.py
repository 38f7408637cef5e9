"""A training job: model, data, faults and strategy."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from lightning.pytorch import Callback, seed_everything
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from typing_extensions import override

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
from trainer.faults import (
    BadDocuments,
    CorruptedShard,
    RepeatedDocuments,
    StreamFault,
    callbacks_of,
    fault_of,
    show_corrupted_corpus,
)
from trainer.module import (
    IdeficsModule,
    PretrainedWeights,
    at_equal_size,
    build_model,
    build_skeleton,
    materialise,
    open_pretrained,
)


def build_step_faults(faults: Mapping[str, Any], seed: int) -> list[Callback]:
    """Return the configured faults that are callbacks.

    Args:
        faults: By name, as configured.
        seed: For faults that make random choices and name no seed.
    """
    return callbacks_of({name: _seeded(fault, seed) for name, fault in faults.items()})


def _seeded(fault: Any, seed: int) -> Any:  # noqa: ANN401  any fault
    return replace(fault, seed=seed) if getattr(fault, "seed", seed) is None else fault


_LAYERS = (
    "IdeficsDecoderLayer",
    "IdeficsGatedCrossAttentionLayer",
    "IdeficsVisionEncoderLayer",
    "IdeficsPerceiverResampler",
)
"""Classes of transformers whose weights are gathered and freed together."""


class ShardedIdeficsModule(IdeficsModule):
    """IDEFICS that is sharded when Lightning asks for it, before the optimizer is made.

    A model that was built whole is cut into its shards. A skeleton on the meta device is cut first
    and filled then, so that no process ever holds more than one layer and its own shards.
    """

    weights: PretrainedWeights | None = None
    """What a skeleton is filled with."""
    _is_sharded = False

    @override
    def configure_model(self) -> None:
        """Shard, once."""
        if self._is_sharded:
            return
        self._is_sharded = True
        mesh: Any = self.device_mesh
        shard(self.model, mesh["data_parallel"] if isinstance(mesh, DeviceMesh) else mesh)
        if next(self.model.parameters()).is_meta:
            materialise(self.model, self.weights, device=self.trainer.strategy.root_device)


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard every layer, and what lies between them, over a mesh, in place."""
    for module in model.modules():
        if type(module).__name__ in _LAYERS:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


DAMAGED_FOLDER: Final = "damaged-corpus"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """Everything that a fit needs, not yet started."""

    module: IdeficsModule
    loader: StreamLoader
    faults: list[Callback]
    tokenizer: CorpusTokenizer
    heldout: SampleStream | None = None
    """Documents that are never trained on; None where the corpus has none."""


def build_job(
    config: RunConfig, *, rank: int = 0, processes: int = 1, sharded: bool = False
) -> TrainingJob:
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
    )  # read at the end, but its errors are reported now
    module = _build_module(config, tokenizer, sharded=sharded)
    if rank:  # dropout masks of its own; rank 0 draws as a run of one process does
        seed_everything(config.training.seed + rank, verbose=False)
    faults = build_step_faults(config.faults, config.training.seed)
    return TrainingJob(module, loader, faults, tokenizer, heldout)


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
            "rules about activations, attention and gates have no data"
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
    fault = fault_of(config.faults, CorruptedShard)
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
    bad = fault_of(config.faults, BadDocuments)
    repeated = fault_of(config.faults, RepeatedDocuments)
    for fault in (bad, repeated):
        if fault is not None:
            _log.warning("fault %s: %s", fault.name, _window(fault))
    if bad is not None and not bad.replacements:
        bad = replace(bad, replacements=tuple(tokenizer.text_ids))
    tokens = None if bad is None else _seeded(bad, config.training.seed)
    return StreamFaults(tokens=tokens, position=repeated)


def _window(fault: StreamFault) -> str:
    first, last = fault.first_sample, fault.last_sample
    return f"documents {first} to {last} of the stream are read differently"
