"""From a configuration to the streams of a corpus."""

from __future__ import annotations

from pathlib import Path

from stabilizer.errors import ConfigurationError
from trainer.config import DataConfig
from trainer.data.encoding import DocumentEncoder, TokenFault
from trainer.data.parquet import HELDOUT_FOLDER, ParquetSource
from trainer.data.stream import DocumentStream, MixtureOrder
from trainer.data.tokenizer import CorpusTokenizer


def open_training_stream(
    config: DataConfig,
    tokenizer: CorpusTokenizer,
    *,
    image_size: int,
    seed: int,
    fault: TokenFault | None = None,
) -> DocumentStream:
    """Open the documents to train on.

    Args:
        config: Folder, sources and sizes.
        tokenizer: The corpus's own.
        image_size: Side of a picture in pixels.
        seed: Names the order of the documents.
        fault: A failure on demand, by position.

    Raises:
        ConfigurationError: The folder does not hold such a corpus.
    """
    return _open(Path(config.folder), config, tokenizer, image_size, seed, fault)


def open_heldout_stream(
    config: DataConfig, tokenizer: CorpusTokenizer, *, image_size: int
) -> DocumentStream | None:
    """Open the documents that are never trained on; None where the corpus has none.

    Raises:
        ConfigurationError: There are some, and they cannot be read.
    """
    folder = Path(config.folder) / HELDOUT_FOLDER
    if not folder.is_dir():
        return None
    return _open(folder, config, tokenizer, image_size, 0, None)


def _open(
    folder: Path,
    config: DataConfig,
    tokenizer: CorpusTokenizer,
    image_size: int,
    seed: int,
    fault: TokenFault | None,
) -> DocumentStream:
    if not folder.is_dir():
        raise ConfigurationError(
            f"data.folder: {folder} does not exist; allowed: a folder written by "
            "`python -m trainer data make --out FOLDER`"
        )
    sources = {name: ParquetSource(folder, name) for name in config.sources}
    sizes = {name: len(source) for name, source in sources.items()}
    encoder = DocumentEncoder(
        tokenizer,
        sequence_length=config.sequence_length,
        max_images=config.max_images,
        image_size=image_size,
    )
    return DocumentStream(
        sources,
        MixtureOrder(sizes, config.sources, seed),
        encoder,
        fault=fault,
        max_bad_in_a_row=config.max_bad_in_a_row,
    )
