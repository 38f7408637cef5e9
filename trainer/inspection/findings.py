"""Documents of a window with their losses and measurements."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stabilizer.errors import ConfigurationError
from trainer.checkpoints import CheckpointError, SafeCheckpointIO
from trainer.config import DataConfig, PretrainedConfig, RunConfig
from trainer.data import (
    PAD,
    BadDocumentError,
    CorpusTokenizer,
    Document,
    DocumentReader,
    Reason,
    collate,
)
from trainer.data.selection import char_repetition, word_repetition
from trainer.data.sequences import DocumentLayout, SequenceEncoder, open_upright
from trainer.data.stream import Read
from trainer.inspection.run_folder import Occurrence
from trainer.module import IdeficsModule, as_json, at_equal_size, build_model


class LossModel:
    """A model with the weights of a checkpoint, dropout off."""

    def __init__(self, config: RunConfig, tokenizer: CorpusTokenizer, checkpoint: Path) -> None:
        """Build the model of a run and load its weights.

        Args:
            config: Of the run.
            tokenizer: Of the run.
            checkpoint: Folder that the trainer wrote, or a Lightning file (read without pickles).

        Raises:
            ConfigurationError: It is none, or of another model.
        """
        weights = _weights(checkpoint)
        # The pretrained weights that the run began with are in the checkpoint.
        model = replace(at_equal_size(config.model), pretrained=PretrainedConfig())
        self._module = IdeficsModule(
            build_model(model, pad_token_id=tokenizer.special(PAD)),
            config.optimizer,
            steps=config.training.steps,
        )
        try:
            self._module.load_state_dict(weights)
        except RuntimeError as error:
            raise ConfigurationError(
                f"--checkpoint: {checkpoint} is of another model than the configuration: {error}"
            ) from error
        self._module.eval()
        data = config.data
        self._encoder = SequenceEncoder(
            tokenizer,
            sequence_length=data.sequence_length,
            max_images=data.max_images,
            image_size=config.model.vision.image_size,
            sees_all_images=data.images_seen == "all",
        )

    @torch.no_grad()
    def of(self, document: Document) -> float:
        """Return the mean loss of a document, alone in a sequence and cut to its length.

        Raises:
            BadDocumentError: It cannot be laid out.
        """
        batch: Any = collate([Read(self._encoder.encode(document, 0))])
        losses = self._module.losses(batch)
        return float(losses.mean(losses.cross_entropy))


def _weights(checkpoint: Path) -> dict[str, Any]:
    if not checkpoint.exists():
        raise ConfigurationError(
            f"--checkpoint: {checkpoint} does not exist; allowed: a checkpoint's folder, or a "
            "Lightning file"
        )
    try:
        if checkpoint.is_dir():
            state: Any = SafeCheckpointIO().load_checkpoint(checkpoint)
        else:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        weights: dict[str, Any] = state["state_dict"]
    except (CheckpointError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigurationError(f"--checkpoint: {checkpoint} cannot be read: {error}") from error
    except (KeyError, TypeError) as error:
        raise ConfigurationError(
            f"--checkpoint: {checkpoint} cannot be used; allowed: one that holds a state_dict"
        ) from error
    return weights


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
    """Limits of its source that it violates; empty: none."""
    damage: str | None = None
    """Why it is unusable."""

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
        """Take the tools for measuring.

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
            return _unreadable(occurrence, "it is no longer in the corpus")
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
