"""The stream of training samples: a pure function of (seed, position).

Position p is the p-th sequence that the whole job reads, over all ranks. Nothing else is state:
any position can be asked for at any time, in any process, and gives the same sample. So a reader
resumes at a sample, skips samples, and is split over ranks and workers by arithmetic alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trainer.data.documents import Skip
from trainer.data.reading import DocumentReader
from trainer.data.sequences.encoding import Sample, SequenceEncoder, TokenFault


@dataclass(frozen=True, slots=True)
class Read:
    """A sample, and what was passed over to find it."""

    sample: Sample
    skips: tuple[Skip, ...] = ()

    @property
    def passed_over(self) -> int:
        """Documents that were passed over."""
        return sum(skip.what == "documents" for skip in self.skips)


class SampleStream(Protocol):
    """Samples by position."""

    @property
    def samples_per_pass(self) -> int:
        """Samples in one pass over the corpus."""

    @property
    def shards_skipped(self) -> Sequence[Skip]:
        """Files that cannot be used."""

    def read(self, position: int) -> Read:
        """Return the sample at a position.

        Raises:
            ConfigurationError: Too many documents in a row are unusable.
        """
        ...


class DocumentStream:
    """One document per sequence. Holds open files and caches, no position of its own."""

    def __init__(
        self, reader: DocumentReader, encoder: SequenceEncoder, *, fault: TokenFault | None = None
    ) -> None:
        """Join documents and layout.

        Args:
            reader: Finds the document of a position.
            encoder: Makes samples of documents.
            fault: A failure on demand, by position.
        """
        self._reader = reader
        self._encoder = encoder
        self._fault = fault

    @property
    def samples_per_pass(self) -> int:
        """Documents in one pass over the corpus."""
        return self._reader.documents

    @property
    def shards_skipped(self) -> Sequence[Skip]:
        """Files that cannot be used."""
        return self._reader.shards_skipped

    def read(self, position: int) -> Read:
        """Return the sample at a position; an unusable document is replaced by a usable one.

        Raises:
            ConfigurationError: Too many unusable documents in a row; it names the last one.
        """
        found = self._reader.find(
            position, lambda document: self._encoder.encode(document, position, self._fault)
        )
        return Read(found.made, found.skips)
