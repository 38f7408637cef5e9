"""Writing the small corpus: documents, pairs, conversations, and their tokenizer."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from stabilizer.errors import ConfigurationError
from trainer.data.building import HELDOUT_FOLDER
from trainer.data.making.corpus import (
    DigitPicture,
    Part,
    conversation,
    image_text_pair,
    web_document,
)
from trainer.data.making.formats import Row, write_conversations, write_parquet, write_webdataset
from trainer.data.tokenizer import TOKENIZER_FILE, train_tokenizer

CORPUS_FILE: Final = "corpus.json"
WEB_DOCUMENTS: Final = "web_documents"
IMAGE_TEXT_PAIRS: Final = "image_text_pairs"
CONVERSATIONS: Final = "conversations"
_FORMAT: Final = 1  # of the documents that a seed gives; raised when the generator changes
PAIRS_PER_DOCUMENTS: Final = (1, 2)  # one image-text pair for every two web documents
HELDOUT_DOCUMENTS: Final = 48  # per source; read at the end of a run, never trained on
_HELDOUT_PICTURES: Final = 0.2  # part of the pictures that no training document shows

PairsFormat: TypeAlias = Literal["parquet", "webdataset"]
_Pictures: TypeAlias = Sequence[Sequence[bytes]]
"""PNG files by digit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusArguments:
    """What a corpus is made from; the same arguments give the same documents."""

    documents: int
    """Number of web documents; half as many image-text pairs come with them."""
    seed: int
    """Start of all random choices."""
    vocabulary_size: int = 640
    """Tokens of the tokenizer, at most."""
    pairs_format: PairsFormat = "parquet"
    """How the image-text pairs are written."""
    conversations: int = 0
    """Number of conversations; with any, the tokenizer has a token for the end of a turn."""

    def __post_init__(self) -> None:
        if self.documents < 2:
            raise ConfigurationError(
                f"--documents: {self.documents} cannot be used; allowed: at least 2 documents"
            )
        if self.conversations < 0:
            raise ConfigurationError(
                f"--conversations: {self.conversations} cannot be used; allowed: 0 or more"
            )
        if self.pairs_format not in _PAIR_WRITERS:
            raise ConfigurationError(
                f"--pairs-format: {self.pairs_format!r} cannot be used; allowed: "
                f"{', '.join(_PAIR_WRITERS)}"
            )

    def as_json(self) -> dict[str, object]:
        """Return what stands in the folder; what was not asked for does not stand there."""
        given: dict[str, object] = {
            "format": _FORMAT,
            "documents": self.documents,
            "seed": self.seed,
            "vocabulary_size": self.vocabulary_size,
        }
        if self.pairs_format != "parquet":
            given["pairs_format"] = self.pairs_format
        if self.conversations:
            given["conversations"] = self.conversations
        return given


@dataclass(frozen=True, slots=True)
class CorpusSummary:
    """What was written."""

    documents: dict[str, int]
    """Documents per source, held-out ones not counted."""
    vocabulary_size: int
    """Tokens of the trained tokenizer."""


def make_corpus(
    folder: Path,
    *,
    documents: int,
    seed: int,
    vocabulary_size: int = 640,
    pairs_format: PairsFormat = "parquet",
    conversations: int = 0,
) -> CorpusSummary:
    """Write a corpus; the same arguments write the same documents, once.

    Args:
        folder: Created if absent. A corpus of the same arguments that it holds is left as it is.
        documents: Number of web documents; half as many image-text pairs come with them.
        seed: Start of all random choices.
        vocabulary_size: Tokens of the tokenizer, at most.
        pairs_format: How the image-text pairs are written.
        conversations: Number of conversations.

    Raises:
        ConfigurationError: Less than two documents, or the folder holds another corpus.
    """
    arguments = CorpusArguments(
        documents=documents,
        seed=seed,
        vocabulary_size=vocabulary_size,
        pairs_format=pairs_format,
        conversations=conversations,
    )
    existing = _existing(folder, arguments)
    if existing is not None:
        return existing
    shown, heldout = _pictures_by_digit(seed)
    texts = _write_split(folder, arguments, _counts(arguments), shown, ())
    kept_back = dict.fromkeys(_counts(arguments), HELDOUT_DOCUMENTS)
    _write_split(folder / HELDOUT_FOLDER, arguments, kept_back, heldout, ("heldout",))
    tokenizer = train_tokenizer(texts, vocabulary_size, for_conversations=conversations > 0)
    tokenizer.save(str(folder / TOKENIZER_FILE))
    summary = CorpusSummary(
        documents=_counts(arguments), vocabulary_size=tokenizer.get_vocab_size()
    )
    content = {"arguments": arguments.as_json(), "summary": asdict(summary)}
    # Last: a folder with this file is complete.
    (folder / CORPUS_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return summary


def _counts(arguments: CorpusArguments) -> dict[str, int]:
    per_pair, per_document = PAIRS_PER_DOCUMENTS
    counts = {
        WEB_DOCUMENTS: arguments.documents,
        IMAGE_TEXT_PAIRS: arguments.documents * per_pair // per_document,
    }
    return counts | ({CONVERSATIONS: arguments.conversations} if arguments.conversations else {})


def _write_split(
    folder: Path,
    arguments: CorpusArguments,
    counts: dict[str, int],
    pictures: _Pictures,
    purpose: tuple[str, ...],
) -> list[str]:
    """Write every source of the training or held-out part; return all texts."""
    writers: dict[str, tuple[Callable[[Random], list[Part]], Callable[..., None]]] = {
        WEB_DOCUMENTS: (web_document, write_parquet),
        IMAGE_TEXT_PAIRS: (image_text_pair, _PAIR_WRITERS[arguments.pairs_format]),
    }
    texts: list[str] = []
    for name, (compose, write) in writers.items():
        random = _random(arguments.seed, name, *purpose)
        rows = list(_rows(compose, counts[name], pictures, random))
        texts += [text for row in rows for text in row.texts if text is not None]
        write(folder / name, rows)
    if CONVERSATIONS in counts:
        random = _random(arguments.seed, CONVERSATIONS, *purpose)
        told = [conversation(random, pictures) for _ in range(counts[CONVERSATIONS])]
        texts += [turn["content"] for each in told for turn in each["turns"]]
        write_conversations(folder / CONVERSATIONS, told)
    return texts


def _existing(folder: Path, arguments: CorpusArguments) -> CorpusSummary | None:
    path = folder / CORPUS_FILE
    if not path.exists():
        return None
    try:
        content: Any = json.loads(path.read_text("utf-8"))
        found, summary = content["arguments"], CorpusSummary(**content["summary"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"--out: {path} describes no corpus: {error}") from error
    if found != arguments.as_json():
        raise ConfigurationError(
            f"--out: {folder} holds another corpus ({found}); allowed: another folder"
        )
    return summary


def _pictures_by_digit(seed: int) -> tuple[list[list[bytes]], list[list[bytes]]]:
    """Return PNG files of scikit-learn's 8x8 digits by class: to train on, and held out."""
    pictures, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    by_digit: list[list[bytes]] = [[] for _ in range(10)]
    for index in order:
        by_digit[int(labels[index])].append(_png(pictures[index]))
    cuts = [int(len(files) * (1 - _HELDOUT_PICTURES)) for files in by_digit]
    shown = [files[:cut] for files, cut in zip(by_digit, cuts, strict=True)]
    return shown, [files[cut:] for files, cut in zip(by_digit, cuts, strict=True)]


def _random(seed: int, *names: str) -> Random:
    return Random("/".join([str(seed), *names]))  # noqa: S311  no secret


def _png(picture: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> bytes:
    grey = (picture.reshape(8, 8) * (255 / 16)).astype(np.uint8)  # the data set has 17 levels
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, format="PNG")
    return stream.getvalue()


def _rows(
    compose: Callable[[Random], list[Part]], count: int, pictures: _Pictures, random: Random
) -> Iterator[Row]:
    for _ in range(count):
        parts = compose(random)
        images: list[dict[str, bytes | None] | None] = [
            {"bytes": random.choice(pictures[part.digit]), "path": None}
            if isinstance(part, DigitPicture)
            else None
            for part in parts
        ]
        texts = [None if isinstance(part, DigitPicture) else part for part in parts]
        metadata = json.dumps([part.digit for part in parts if isinstance(part, DigitPicture)])
        yield Row(images, texts, metadata)


_PAIR_WRITERS: Final[dict[str, Callable[[Path, Sequence[Row]], None]]] = {
    "parquet": write_parquet,
    "webdataset": write_webdataset,
}
