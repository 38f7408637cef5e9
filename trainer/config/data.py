"""Which documents are read, in which mixture, and how they become batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, ConfigDict

from trainer.config.checks import require, require_count
from trainer.config.filters import FiltersConfig

SourceKind: TypeAlias = Literal["parquet", "webdataset", "conversations"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """Where documents of one kind are, and how often they are read."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    weight: int
    """Documents of this source in every sum(weights) documents."""
    kind: SourceKind = "parquet"
    """Interleaved documents in the schema of OBELICS (.parquet); pictures with captions in
    WebDataset shards (.tar); conversations, of which only the assistant's turns are learned
    (.jsonl)."""
    path: str | None = None
    """File, folder, glob or fsspec URL; a relative one begins at `data.folder`. Null: the source's
    name."""
    heldout: str | None = None
    """The same for documents that are never trained on. Null: where `path` is relative, the same
    path below `heldout` in `data.folder`."""
    filters: FiltersConfig | None = None
    """Limits of this source alone; null: those of `data.filters`."""


def _whole(source: object) -> object:
    return {"weight": source} if isinstance(source, int) else source


Source: TypeAlias = Annotated[SourceConfig, BeforeValidator(_whole)]
"""In a file, a whole weight alone stands for Parquet files in the sub-folder of that name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackingConfig:
    """Several documents in one sequence.

    Every `documents` documents of the stream are laid into `rows` sequences, whole where they fit;
    what finds no room is left out and counted. So a sequence depends on its window alone.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    documents: int
    """Documents per window."""
    rows: int
    """Sequences per window. The series sequence_fill tells how full they are, documents_skipped
    with the reason no_room what is left out."""

    def __post_init__(self) -> None:
        require_count("data.packing.rows", self.rows)
        require(
            self.documents >= self.rows,
            "data.packing.documents",
            self.documents,
            f"at least data.packing.rows ({self.rows}), so that no sequence stays empty",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The corpus and its stream."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    folder: str = "data"
    """Folder of the corpus: a sub-folder per source, and `tokenizer.json`."""
    tokenizer: str | None = None
    """A tokenizer file, or a folder with `tokenizer.json`; null: that of `folder`."""
    sources: Mapping[str, Source]
    """Source name to its weight (Parquet files in the sub-folder of that name), or to a mapping
    with weight, kind, path, heldout and filters."""
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    """Which documents and pictures are left out."""
    quarantine: str | None = None
    """File of documents and positions that are left out, as `data quarantine` writes it."""
    batch_size: int
    """Sequences per rank and microbatch."""
    sequence_length: int
    """Tokens per sequence. Longer documents are cut, or, packed, go on in another sequence."""
    max_images: int
    """Pictures per sequence; a document is cut where one more would begin."""
    packing: PackingConfig | None = None
    """Several documents per sequence; null: one, and padding."""
    images_seen: Literal["last", "all"] = "last"
    """Which pictures before it in its document a token sees: the last one, as in Flamingo and the
    published IDEFICS, or all of them."""
    shuffle_blocks: int = 0
    """Blocks (row groups, or 1024 documents of a shard) that are shuffled with each other; blocks
    come in random order. 0: a whole source at once, for sources that fit into memory."""
    cache_mebibytes: int = 256
    """Most MiB of read row groups that a process keeps per source."""
    workers: int = 0
    """Processes that prepare batches; they change the speed, never the batches."""
    epoch_samples: int = 0
    """Samples of the stream in one epoch; 0: as many as the corpus has documents."""
    max_bad_in_a_row: int = 16
    """Damaged documents (or shards) passed over, one after another, before the job stops."""
    ledger_mebibytes: int = 64
    """Most MiB of the record of which documents went into which step; 0: none is kept."""

    def __post_init__(self) -> None:
        require(bool(self.sources), "data.sources", {}, "at least one source")
        for name, source in self.sources.items():
            require(
                bool(name) and not set(name) & set("/\\:") and not name.startswith("."),
                "data.sources",
                name,
                "names without / \\ and :, which do not begin with a dot",
            )
            require_count(f"data.sources.{name}", source.weight)
        require_count("data.batch_size", self.batch_size)
        require_count("data.sequence_length", self.sequence_length, at_least=8)
        require_count("data.max_images", self.max_images)
        require_count("data.shuffle_blocks", self.shuffle_blocks, at_least=0)
        require_count("data.cache_mebibytes", self.cache_mebibytes)
        require_count("data.workers", self.workers, at_least=0)
        require_count("data.epoch_samples", self.epoch_samples, at_least=0)
        require_count("data.max_bad_in_a_row", self.max_bad_in_a_row)
        require_count("data.ledger_mebibytes", self.ledger_mebibytes, at_least=0)

    def filters_of(self, name: str) -> FiltersConfig:
        """Return the limits that hold for a source."""
        return self.sources[name].filters or self.filters
