"""The stream of samples by position: one document each, or several packed into rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from torch import Tensor

from trainer.config import PackingConfig
from trainer.data.documents import BadDocumentError, Document, Reason, Skip
from trainer.data.reading import DocumentReader
from trainer.data.sequences import EncodedSample, Piece, SequenceEncoder, TokenFault


@dataclass(frozen=True, slots=True)
class Read:
    """A sample, and what was skipped to find it."""

    sample: EncodedSample
    skips: tuple[Skip, ...] = ()

    @property
    def passed_over(self) -> int:
        """Skipped documents."""
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


_KEPT_WINDOWS: Final = 4  # laid out in a process; a batch seldom spans more


@dataclass(slots=True)
class PackedRow:
    """Contents of one sequence."""

    pieces: list[Piece] = field(default_factory=list)
    """In the order of the stream."""
    tokens: int = 0
    """Of all pieces."""
    pictures: int = 0
    """Of all pieces."""

    def add(self, piece: Piece) -> None:
        """Append a piece."""
        self.pieces.append(piece)
        self.tokens += len(piece.tokens)
        self.pictures += len(piece.pictures)

    def take_last(self) -> Piece:
        """Remove the last piece."""
        piece = self.pieces.pop()
        self.tokens -= len(piece.tokens)
        self.pictures -= len(piece.pictures)
        return piece


@dataclass(frozen=True, slots=True)
class _Window:
    """One window, laid out."""

    rows: list[PackedRow]
    skips: tuple[Skip, ...]


class PackedStream:
    """Several documents per sequence. Holds the newest windows, no position of its own."""

    def __init__(
        self,
        reader: DocumentReader,
        encoder: SequenceEncoder,
        config: PackingConfig,
        *,
        sequence_length: int,
        max_images: int,
        fault: TokenFault | None = None,
    ) -> None:
        """Join documents and layout.

        Args:
            reader: Finds the document of a position in the mixture.
            encoder: Makes samples of pieces.
            config: Size of a window.
            sequence_length: Tokens of a sequence.
            max_images: Pictures of a sequence.
            fault: A failure on demand, by position.
        """
        self._reader = reader
        self._encoder = encoder
        self._config = config
        self._length = sequence_length
        self._max_images = max_images
        self._fault = fault
        self._windows: OrderedDict[int, _Window] = OrderedDict()

    @property
    def samples_per_pass(self) -> int:
        """Sequences in one pass over the corpus."""
        return max(self._reader.documents * self._config.rows // self._config.documents, 1)

    @property
    def shards_skipped(self) -> Sequence[Skip]:
        """Files that cannot be used."""
        return self._reader.shards_skipped

    def read(self, position: int) -> Read:
        """Return the sequence at a position.

        A document with a picture that cannot be decoded is left out of its sequence; where nothing
        else is in it, another document takes its place.

        Raises:
            ConfigurationError: Too many unusable documents in a row; it names the last one.
        """
        number, row = divmod(position, self._config.rows)
        window = self._window(number)
        # Skipped documents of a window are reported once, with its first sequence.
        skips = list(window.skips) if row == 0 else []
        pieces: list[Piece] = []
        pictures: list[list[Tensor]] = []
        for piece in window.rows[row].pieces:
            try:
                decoded = self._encoder.decode(piece)
            except BadDocumentError as error:
                skips.append(Skip("documents", piece.source, error.reason, piece.sample_id))
                continue
            pieces.append(piece)
            pictures.append(decoded)
        if not pieces:
            piece, decoded, passed_over = self._another(number * self._config.documents + row)
            pieces, pictures = [piece], [decoded]
            skips += passed_over
        sample = self._encoder.join(pieces, pictures, position, self._fault)
        return Read(sample, tuple(skips))

    def _another(self, position: int) -> tuple[Piece, list[Tensor], tuple[Skip, ...]]:
        """Return the beginning of the first document for a position that can be decoded."""
        found = self._reader.find(position, self._beginning)
        return (*found.made, found.skips)

    def _beginning(self, document: Document) -> tuple[Piece, list[Tensor]]:
        piece = self._encoder.layout.cut(document)
        return piece, self._encoder.decode(piece)

    def _window(self, number: int) -> _Window:
        if number in self._windows:
            self._windows.move_to_end(number)
            return self._windows[number]
        window = self._lay_out(number)
        self._windows[number] = window
        if len(self._windows) > _KEPT_WINDOWS:
            self._windows.popitem(last=False)
        return window

    def _lay_out(self, number: int) -> _Window:
        pieces: list[Piece] = []
        skips: list[Skip] = []
        first = number * self._config.documents
        for position in range(first, first + self._config.documents):
            found = self._reader.find(position, self._encoder.layout.split)
            pieces += found.made
            skips += found.skips
        rows, left_out = pack(
            pieces, self._config.rows, length=self._length, max_images=self._max_images
        )
        skips += [
            Skip("documents", piece.source, Reason.NO_ROOM, piece.sample_id) for piece in left_out
        ]
        return _Window(rows, tuple(skips))


def pack(
    pieces: Sequence[Piece], rows: int, *, length: int, max_images: int
) -> tuple[list[PackedRow], list[Piece]]:
    """Lay pieces into rows.

    Args:
        pieces: In order, at least as many as rows; each fits into an empty row.
        rows: Number of rows.
        length: Most tokens in a row.
        max_images: Most pictures in a row.

    Returns:
        The rows, none of them empty, and the pieces that did not fit.
    """
    packed = [PackedRow() for _ in range(rows)]
    left_out: list[Piece] = []
    for piece in pieces:
        tokens, pictures = length - len(piece.tokens), max_images - len(piece.pictures)
        fitting = (row for row in packed if row.tokens <= tokens and row.pictures <= pictures)
        row = next(fitting, None)
        if row is None:
            left_out.append(piece)
        else:
            row.add(piece)
    for row in packed:
        if not row.pieces:
            row.add(max(packed, key=lambda other: len(other.pieces)).take_last())
    return packed, left_out
