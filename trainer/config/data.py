"""Which documents are read, in which mixture, and how they become batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from trainer.config.checks import require, require_count


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The corpus and its stream."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    folder: str = "data"
    """Folder with a sub-folder of Parquet files per source and `tokenizer.json`."""
    sources: Mapping[str, int]
    """Source name (a sub-folder) to its weight: documents of it in every sum(weights) documents."""
    batch_size: int
    """Documents per rank and microbatch."""
    sequence_length: int
    """Tokens per document: longer ones are cut, shorter ones padded."""
    max_images: int
    """Pictures per document; a document is cut where one more would begin."""
    workers: int = 0
    """Processes that prepare batches; they change the speed, never the batches."""
    epoch_samples: int = 0
    """Samples of the stream in one epoch; 0: as many as the corpus has documents."""
    max_bad_in_a_row: int = 16
    """Unusable documents that are passed over, one after another, before the job stops."""

    def __post_init__(self) -> None:
        require(
            bool(self.sources) and all(weight > 0 for weight in self.sources.values()),
            "data.sources",
            dict(self.sources),
            "at least one source, each with a whole weight of at least 1",
        )
        require_count("data.batch_size", self.batch_size)
        require_count("data.sequence_length", self.sequence_length, at_least=8)
        require_count("data.max_images", self.max_images)
        require_count("data.workers", self.workers, at_least=0)
        require_count("data.epoch_samples", self.epoch_samples, at_least=0)
        require_count("data.max_bad_in_a_row", self.max_bad_in_a_row)
