"""Which documents are read, in which mixture, which are left out, and how they become batches."""

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

    Pictures are looked at first: one outside of its limits is taken out of its document, whose
    paragraphs stay. Then the document is judged as a whole.

    Source: Laurencon et al., OBELICS (arXiv:2306.16527), appendix A.2 and A.3: the kinds of
    filters, not their numbers, which belong to a corpus.
    """

    min_words: Natural | None = None
    """Fewest words in all paragraphs together; words are what blanks separate."""
    max_words: Natural | None = None
    """Most words in all paragraphs together."""
    max_word_repetition: Fraction | None = None
    """Largest part of the word n-grams that occur more than once, 0 to 1."""
    word_ngram: Count = 5
    """Words in an n-gram."""
    max_char_repetition: Fraction | None = None
    """Largest part of the character n-grams that occur more than once, 0 to 1."""
    char_ngram: Count = 10
    """Characters in an n-gram."""
    min_pictures: Natural | None = None
    """Fewest pictures, after those outside of the limits below were taken out."""
    max_pictures: Natural | None = None
    """Most pictures."""
    min_picture_side: Count | None = None
    """Smallest width and height of a picture in pixels."""
    max_picture_side: Count | None = None
    """Largest width and height of a picture in pixels."""
    max_aspect_ratio: Annotated[float, Field(ge=1)] | None = None
    """Largest ratio of a picture's longer side to its shorter one."""
    flagged_words: str | None = None
    """File with a word per line (# begins a remark); case does not matter."""
    max_flagged_ratio: Fraction = 0.0
    """Largest part of the words that stand in `flagged_words`."""

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
    """Where documents of one kind are, and how often they are read."""

    weight: Count
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


@dataclass(frozen=True, kw_only=True, config=SECTION)
class PackingConfig(Section):
    """Several documents in one sequence.

    Every `documents` documents of the stream are laid into `rows` sequences, whole where they fit;
    what finds no room is left out and counted. So a sequence depends on its window alone.
    """

    documents: Count
    """Documents per window."""
    rows: Count
    """Sequences per window. The series sequence_fill reports how full they are, documents_skipped
    with the reason no_room what is left out."""

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
    """Which documents and pictures are left out."""
    quarantine: str | None = None
    """File of documents and positions that are left out, as `data quarantine` writes it."""
    batch_size: Count
    """Sequences per rank and microbatch."""
    sequence_length: Annotated[int, Field(ge=8)]
    """Tokens per sequence. Longer documents are cut, or, packed, continue in another sequence."""
    max_images: Count
    """Pictures per sequence; a document is cut where one more would begin."""
    packing: PackingConfig | None = None
    """Several documents per sequence; null: one, and padding."""
    images_seen: Literal["last", "all"] = "last"
    """Which pictures before it in its document a token sees: the last one, as in Flamingo and the
    published IDEFICS, or all of them."""
    shuffle_blocks: Natural = 0
    """Blocks (row groups, or 1024 documents of a shard) that are shuffled with each other; blocks
    come in random order. 0: a whole source at once, for sources that fit into memory."""
    cache_mebibytes: Count = 256
    """Most MiB of read row groups that a process keeps per source."""
    workers: Natural = 0
    """Processes that prepare batches; they change the speed, never the batches."""
    epoch_samples: Natural = 0
    """Samples of the stream in one epoch; 0: as many as the corpus has documents."""
    max_bad_in_a_row: Count = 16
    """Damaged documents (or shards) passed over, one after another, before the job stops."""
    ledger_mebibytes: Natural = 64
    """Most MiB of the record of which documents went into which step; 0: none is kept."""

    def filters_of(self, name: str) -> FiltersConfig:
        """Return the limits that hold for a source."""
        return self.sources[name].filters or self.filters
