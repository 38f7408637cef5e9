"""Configuration of the data: sources, mixture, filters, and batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from trainer.config.section import (
    SECTION,
    Count,
    Fraction,
    Natural,
    Refusals,
    Section,
    agreement,
    refuse,
)


@dataclass(frozen=True, kw_only=True, config=SECTION)
class FiltersConfig(Section):
    """Limits on documents; null: no limit.

    Pictures are checked first: a picture outside the limits is removed from its document. Then the
    remaining document is checked as a whole.

    Source: Laurencon et al., OBELICS (arXiv:2306.16527), appendix A.2 and A.3: the kinds of
    filters, not their numbers, which belong to a corpus.
    """

    min_words: Natural | None = None
    """Smallest number of words, separated by whitespace, in all paragraphs."""
    max_words: Natural | None = None
    """Largest number of words in all paragraphs."""
    max_word_repetition: Fraction | None = None
    """Largest fraction of the word n-grams that occur more than once, 0 to 1."""
    word_ngram: Count = 5
    """Words in an n-gram."""
    max_char_repetition: Fraction | None = None
    """Largest fraction of the character n-grams that occur more than once, 0 to 1."""
    char_ngram: Count = 10
    """Characters in an n-gram."""
    min_pictures: Natural | None = None
    """Smallest number of pictures, those outside the limits below excluded."""
    max_pictures: Natural | None = None
    """Largest number of pictures, those outside the limits below excluded."""
    min_picture_side: Count | None = None
    """Smallest width and height of a picture in pixels."""
    max_picture_side: Count | None = None
    """Largest width and height of a picture in pixels."""
    max_aspect_ratio: Annotated[float, Field(ge=1)] | None = None
    """Largest ratio of the longer side of a picture to its shorter one."""
    flagged_words: str | None = None
    """File with one word per line (# starts a comment); case is ignored."""
    max_flagged_ratio: Fraction = 0.0
    """Largest fraction of the words that are listed in `flagged_words`."""

    @agreement
    def _words_are_ordered(self) -> Refusals:
        return _order("words", self.min_words, self.max_words)

    @agreement
    def _pictures_are_ordered(self) -> Refusals:
        return _order("pictures", self.min_pictures, self.max_pictures)

    @agreement
    def _sides_are_ordered(self) -> Refusals:
        return _order("picture_side", self.min_picture_side, self.max_picture_side)


def _order(name: str, low: int | None, high: int | None) -> Refusals:
    if low is not None and high is not None and low > high:
        yield f"min_{name}", low, f"at most max_{name} ({high})"


SourceKind: TypeAlias = Literal["parquet", "webdataset", "conversations"]


@dataclass(frozen=True, kw_only=True, config=SECTION)
class SourceConfig(Section):
    """A source of documents: location, format, and weight in the mixture."""

    weight: Count
    """Number of documents of this source in every sum(weights) documents."""
    kind: SourceKind = "parquet"
    """Interleaved documents in the schema of OBELICS (.parquet); pictures with captions in
    WebDataset shards (.tar); conversations, of which only the assistant's turns are predicted
    (.jsonl)."""
    path: str | None = None
    """File, folder, glob or fsspec URL; relative paths start at `data.folder`. Null: the source's
    name."""
    heldout: str | None = None
    """The same for held-out documents. Null: `path` below the folder `heldout` of `data.folder`, if
    `path` is relative."""
    filters: FiltersConfig | None = None
    """Limits for this source; null: those of `data.filters`."""


def _whole(source: object) -> object:
    return {"weight": source} if isinstance(source, int) else source


Source: TypeAlias = Annotated[SourceConfig, BeforeValidator(_whole)]
"""A whole number is short for its weight: Parquet files in the sub-folder of that name."""


@dataclass(frozen=True, kw_only=True, config=SECTION)
class PackingConfig(Section):
    """Packing of several documents into one sequence.

    Every `documents` documents of the stream are packed into `rows` sequences, whole where they
    fit; documents without room are dropped and counted. A sequence depends on its window only.
    """

    documents: Count
    """Documents per window."""
    rows: Count
    """Sequences per window. The metric sequence_fill reports how full they are, documents_skipped
    with the reason no_room how many documents were dropped."""

    @agreement
    def _every_sequence_has_a_document(self) -> Refusals:
        if self.documents < self.rows:
            allowed = f"at least rows ({self.rows}), so that no sequence stays empty"
            yield "documents", self.documents, allowed


def _check_sources(sources: Mapping[str, SourceConfig]) -> Mapping[str, SourceConfig]:
    if not sources:
        raise refuse("at least one source")
    for name in sources:
        if not name or set(name) & set("/\\:") or name.startswith("."):
            raise refuse(f"names without / \\ and : that do not begin with a dot, not {name!r}")
    return sources


@dataclass(frozen=True, kw_only=True, config=SECTION)
class DataConfig(Section):
    """The corpus and its stream."""

    folder: str = "data"
    """Folder of the corpus: a sub-folder per source, and `tokenizer.json`."""
    tokenizer: str | None = None
    """A tokenizer file, or a folder with `tokenizer.json`; null: that of `folder`."""
    sources: Annotated[Mapping[str, Source], AfterValidator(_check_sources)]
    """Source name to its weight (Parquet files in the sub-folder of that name), or to a mapping
    with weight, kind, path, heldout and filters."""
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    """Limits on documents and pictures."""
    quarantine: str | None = None
    """File of excluded documents and positions, as `data quarantine` writes it."""
    batch_size: Count
    """Sequences per rank and microbatch."""
    sequence_length: Annotated[int, Field(ge=8)]
    """Tokens per sequence. Longer documents are cut or, with packing, continued in another one."""
    max_images: Count
    """Pictures per sequence; a document is cut before the first one too many."""
    packing: PackingConfig | None = None
    """Packing; null: one document per sequence, padded."""
    images_seen: Literal["last", "all"] = "last"
    """Pictures that a token attends to: the last one before it in its document, as in Flamingo and
    the published IDEFICS, or all before it."""
    shuffle_blocks: Natural = 0
    """Number of blocks (row groups, or 1024 documents of a shard) to shuffle together; the blocks
    are in random order. 0: the whole source, for sources that fit into memory."""
    cache_mebibytes: Count = 256
    """Cache of row groups per process and source, in MiB."""
    workers: Natural = 0
    """Number of processes that prepare batches; it does not change the batches."""
    epoch_samples: Natural = 0
    """Samples of the stream in one epoch; 0: as many as the corpus has documents."""
    max_bad_in_a_row: Count = 16
    """Number of consecutive damaged documents (or shards) that are skipped before the job fails."""
    ledger_mebibytes: Natural = 64
    """Size limit of the ledger of documents per step, in MiB; 0: no ledger."""

    def filters_of(self, name: str) -> FiltersConfig:
        """Return the limits of a source."""
        return self.sources[name].filters or self.filters
