"""Data that is bad: a rollback meets it again unless it skips past it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import ClassVar, Literal

from pydantic import ConfigDict

from trainer.config.checks import require, require_count


@dataclass(frozen=True, kw_only=True, slots=True)
class BadDocumentsConfig:
    """Documents of a window of the stream are garbage."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    first_sample: int
    """Position in the stream of the first bad document (step times global batch)."""
    samples: int
    """How many documents are bad."""
    kind: Literal["random_tokens", "shuffled_text"] = "random_tokens"
    """Text replaced by random tokens, or its own tokens in random order."""

    def __post_init__(self) -> None:
        require_count("faults.bad_documents.first_sample", self.first_sample, at_least=0)
        require_count("faults.bad_documents.samples", self.samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatedDocumentsConfig:
    """In a window of the stream the first documents of the window come again and again."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    first_sample: int
    """Position in the stream of the first document of the window."""
    samples: int
    """Documents in the window."""
    distinct: int = 1
    """How many of them are different."""

    def __post_init__(self) -> None:
        name = "faults.repeated_documents"
        require_count(f"{name}.first_sample", self.first_sample, at_least=0)
        require_count(f"{name}.samples", self.samples)
        require(
            1 <= self.distinct <= max(self.samples, 1),
            f"{name}.distinct",
            self.distinct,
            f"1 to {name}.samples ({self.samples})",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CorruptedShardConfig:
    """A file of the corpus is damaged for this run; the corpus itself is never touched.

    The run reads a folder of links below `training.out` in which that file is a damaged copy.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    shard: str
    """The file, relative to `data.folder`."""
    damage: Literal["bytes", "truncated"] = "bytes"
    """bytes: in one stretch, 64 bytes in every 4 KiB are overwritten; truncated: the end is gone.
    A Parquet file keeps its footer with `bytes`, so that some of its row groups can be read; one
    that is truncated cannot be opened."""
    part: float = 0.25
    """Length of the stretch, or of the end, as a part of the file."""

    def __post_init__(self) -> None:
        path = PurePath(self.shard)
        require(0 < self.part <= 1, "faults.corrupted_shard.part", self.part, "above 0, at most 1")
        require(
            bool(self.shard.strip()) and not path.is_absolute() and ".." not in path.parts,
            "faults.corrupted_shard.shard",
            self.shard,
            "a file below data.folder, named from there",
        )
