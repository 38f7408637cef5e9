"""Build the streams of a corpus from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from stabilizer.errors import ConfigurationError
from trainer.config import DataConfig, SourceConfig
from trainer.data.documents import DocumentSource
from trainer.data.order import MixtureOrder
from trainer.data.reading import DocumentReader, StreamFaults
from trainer.data.selection import DocumentFilter, read_quarantine
from trainer.data.sequences import SequenceEncoder, TokenFault
from trainer.data.sources import (
    ConversationSource,
    ParquetSource,
    StoredFile,
    TarSource,
    conversations,
    is_relative,
    list_files,
    parquet,
    tars,
)
from trainer.data.stream import DocumentStream, PackedStream, SampleStream
from trainer.data.tokenizer import CorpusTokenizer, load_tokenizer

HELDOUT_FOLDER: Final = "heldout"


def open_tokenizer(config: DataConfig) -> CorpusTokenizer:
    """Read the tokenizer that the configuration names, or that of the corpus.

    Raises:
        ConfigurationError: It is absent, cannot be read, or lacks a special token.
    """
    return load_tokenizer(Path(config.tokenizer or config.folder))


def open_training_stream(
    config: DataConfig,
    tokenizer: CorpusTokenizer,
    *,
    image_size: int,
    seed: int,
    fault: TokenFault | StreamFaults | None = None,
) -> SampleStream:
    """Open the documents to train on.

    Args:
        config: Sources and sizes.
        tokenizer: The corpus's own.
        image_size: Side of a picture in pixels.
        seed: Names the order of the documents.
        fault: Failures on demand, by position; a function alone changes tokens.

    Raises:
        ConfigurationError: The sources are not there, or not what they should be.
    """
    faults = fault if isinstance(fault, StreamFaults) else StreamFaults(tokens=fault)
    reader = open_reader(config, seed=seed, faults=faults)
    return _stream(reader, config, tokenizer, image_size, faults)


def open_reader(
    config: DataConfig, *, seed: int, faults: StreamFaults | None = None
) -> DocumentReader:
    """Open the documents to train on, before tokenization.

    Args:
        config: Sources, filters and quarantine.
        seed: Names the order of the documents.
        faults: Failures on demand.

    Raises:
        ConfigurationError: The sources are not there, or not what they should be.
    """
    folder = Path(config.folder)
    paths = {name: _path(folder, name, source) for name, source in config.sources.items()}
    return _reader(config, paths, seed, faults)


def open_heldout_stream(
    config: DataConfig, tokenizer: CorpusTokenizer, *, image_size: int
) -> SampleStream | None:
    """Open the held-out documents; None if no source has any.

    Raises:
        ConfigurationError: They exist but cannot be read.
    """
    paths = {
        name: path
        for name, source in config.sources.items()
        if (path := _heldout_path(Path(config.folder), name, source)) is not None
    }
    if not paths:
        return None
    return _stream(_reader(config, paths, 0, None), config, tokenizer, image_size, StreamFaults())


def _path(folder: Path, name: str, source: SourceConfig) -> str:
    path = name if source.path is None else source.path
    if not is_relative(path):
        return path
    if not folder.is_dir():
        raise ConfigurationError(
            f"data.folder: {folder} does not exist; allowed: a folder written by "
            "`python -m trainer data make --out FOLDER`"
        )
    return str(folder / path)


def _heldout_path(folder: Path, name: str, source: SourceConfig) -> str | None:
    if source.heldout is not None:
        return str(folder / source.heldout) if is_relative(source.heldout) else source.heldout
    path = name if source.path is None else source.path
    heldout = folder / HELDOUT_FOLDER / path
    return str(heldout) if is_relative(path) and heldout.exists() else None


def _reader(
    config: DataConfig, paths: Mapping[str, str], seed: int, faults: StreamFaults | None
) -> DocumentReader:
    sources = {name: _open_source(config, name, path) for name, path in paths.items()}
    order = MixtureOrder(
        {name: source.blocks for name, source in sources.items()},
        {name: config.sources[name].weight for name in paths},
        seed,
        shuffle_blocks=config.shuffle_blocks,
    )
    return DocumentReader(
        sources,
        order,
        filters={name: DocumentFilter(config.filters_of(name)) for name in paths},
        quarantine=read_quarantine(Path(config.quarantine)) if config.quarantine else None,
        faults=faults,
        max_bad_in_a_row=config.max_bad_in_a_row,
    )


def _open_source(config: DataConfig, name: str, path: str) -> DocumentSource:
    suffix, open_kind = _KINDS[config.sources[name].kind]
    field = f"data.sources.{name}"
    try:
        files = list_files(field, path, suffix)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}{_other_kind(field, Path(path))}") from error
    return open_kind(config, name, files)


def _other_kind(field: str, folder: Path) -> str:
    """Return a hint if the files of a folder are of another kind."""
    for kind, (suffix, _) in _KINDS.items():
        if folder.is_dir() and any(entry.suffix == suffix for entry in folder.iterdir()):
            return f"; its {suffix} files are read with {field}.kind={kind}"
    return ""


def _open_parquet(config: DataConfig, name: str, files: list[StoredFile]) -> DocumentSource:
    return ParquetSource(
        name,
        files,
        cache_bytes=config.cache_mebibytes * 2**20,
        max_bad_in_a_row=config.max_bad_in_a_row,
    )


def _open_tars(config: DataConfig, name: str, files: list[StoredFile]) -> DocumentSource:
    return TarSource(name, files, max_bad_in_a_row=config.max_bad_in_a_row)


def _open_conversations(config: DataConfig, name: str, files: list[StoredFile]) -> DocumentSource:
    return ConversationSource(name, files, max_bad_in_a_row=config.max_bad_in_a_row)


_KINDS: Final[
    Mapping[str, tuple[str, Callable[[DataConfig, str, list[StoredFile]], DocumentSource]]]
] = {
    "parquet": (parquet.SUFFIX, _open_parquet),
    "webdataset": (tars.SUFFIX, _open_tars),
    "conversations": (conversations.SUFFIX, _open_conversations),
}


def _stream(
    reader: DocumentReader,
    config: DataConfig,
    tokenizer: CorpusTokenizer,
    image_size: int,
    faults: StreamFaults,
) -> SampleStream:
    encoder = SequenceEncoder(
        tokenizer,
        sequence_length=config.sequence_length,
        max_images=config.max_images,
        image_size=image_size,
        sees_all_images=config.images_seen == "all",
    )
    if config.packing is None:
        return DocumentStream(reader, encoder, fault=faults.tokens)
    return PackedStream(
        reader,
        encoder,
        config.packing,
        sequence_length=config.sequence_length,
        max_images=config.max_images,
        fault=faults.tokens,
    )
