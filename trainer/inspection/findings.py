"""What can be said about a document without a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config.data import DataConfig
from trainer.data import BadDocumentError, CorpusTokenizer, Document, DocumentReader, Reason
from trainer.data.selection.filters import char_repetition, word_repetition
from trainer.data.sequences.layout import DocumentLayout
from trainer.data.sequences.pictures import open_upright
from trainer.inspection.losses import LossModel
from trainer.inspection.window import Occurrence
from trainer.module import as_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One document of a window."""

    occurrence: Occurrence
    """Where it was read."""
    document: Document | None
    """Its content; None: it cannot be read."""
    loss: float | None
    """Mean loss per predicted token."""
    loss_from: str | None
    """ledger: as recorded at its step; checkpoint: computed now; None: there is none."""
    words: int = 0
    """What blanks separate, in all paragraphs."""
    characters: int = 0
    """In all paragraphs."""
    tokens: int = 0
    """Of the whole document, special ones included."""
    pictures: int = 0
    """Pictures in it."""
    word_repetition: float = 0.0
    """Part of its word n-grams (data.filters.word_ngram) that occur more than once."""
    char_repetition: float = 0.0
    """Part of its character n-grams (data.filters.char_ngram) that occur more than once."""
    verdict: tuple[Reason, ...] = ()
    """What the filters of its source say against it; empty: nothing."""
    damage: str | None = None
    """Why it cannot be used."""

    def as_json(self) -> dict[str, Any]:
        """Return everything but the pictures; NaN and Inf are strings."""
        where = self.occurrence
        return {
            "sample_id": where.sample_id,
            "source": where.source,
            "position": where.position,
            "step": where.step,
            "attempt": where.attempt,
            "loss": as_json(self.loss),
            "loss_from": self.loss_from,
            "words": self.words,
            "characters": self.characters,
            "tokens": self.tokens,
            "pictures": self.pictures,
            "word_repetition": round(self.word_repetition, 4),
            "char_repetition": round(self.char_repetition, 4),
            "verdict": [reason.value for reason in self.verdict],
            "damage": self.damage,
            "text": "" if self.document is None else self.document.text,
        }


class Inspector:
    """Reads and measures documents."""

    def __init__(
        self,
        reader: DocumentReader,
        tokenizer: CorpusTokenizer,
        config: DataConfig,
        losses: LossModel | None = None,
    ) -> None:
        """Take what is needed to judge.

        Args:
            reader: Reads documents by id.
            tokenizer: Counts tokens.
            config: Sizes and n-grams.
            losses: A model that says how likely documents are; None: only recorded losses count.
        """
        self._reader = reader
        self._config = config
        self._losses = losses
        self._layout = DocumentLayout(
            tokenizer, sequence_length=config.sequence_length, max_images=config.max_images
        )

    def inspect(self, occurrences: Sequence[Occurrence]) -> Iterator[Finding]:
        """Yield a finding for every occurrence, in order."""
        for occurrence in occurrences:
            yield self._inspect(occurrence)

    def _inspect(self, occurrence: Occurrence) -> Finding:
        try:
            document = self._reader.document(occurrence.sample_id)
        except BadDocumentError as error:
            return _unreadable(occurrence, str(error))
        except KeyError:
            return _unreadable(occurrence, "it is not in the corpus any more")
        loss, loss_from = occurrence.loss, _origin(occurrence)
        damage: str | None = None
        try:
            for file in document.pictures:
                open_upright(document.sample_id, file)
            if self._losses is not None:
                loss, loss_from = self._losses.of(document), "checkpoint"
        except BadDocumentError as error:
            damage = str(error)
        return self._measured(occurrence, document, loss, loss_from, damage)

    def _measured(
        self,
        occurrence: Occurrence,
        document: Document,
        loss: float | None,
        loss_from: str | None,
        damage: str | None,
    ) -> Finding:
        text = document.text
        limits = self._config.filters_of(document.source)
        return Finding(
            occurrence=occurrence,
            document=document,
            loss=loss,
            loss_from=loss_from,
            words=len(text.split()),
            characters=len(text),
            tokens=self._tokens(document),
            pictures=len(document.pictures),
            word_repetition=word_repetition(text, limits.word_ngram),
            char_repetition=char_repetition(text, limits.char_ngram),
            verdict=self._reader.judge(document).rejected,
            damage=damage,
        )

    def _tokens(self, document: Document) -> int:
        try:
            return sum(len(piece.tokens) for piece in self._layout.split(document))
        except BadDocumentError:
            return 0


def _unreadable(occurrence: Occurrence, damage: str) -> Finding:
    return Finding(
        occurrence=occurrence,
        document=None,
        loss=occurrence.loss,
        loss_from=_origin(occurrence),
        damage=damage,
    )


def _origin(occurrence: Occurrence) -> str | None:
    return None if occurrence.loss is None else "ledger"
