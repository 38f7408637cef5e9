"""Writing the small corpus: Parquet in the schema of OBELICS, and its tokenizer."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits

from stabilizer.errors import ConfigurationError
from trainer.data.building import HELDOUT_FOLDER
from trainer.data.making.corpus import DigitPicture, Part, image_text_pair, web_document
from trainer.data.sources.parquet import SCHEMA
from trainer.data.tokenizer import TOKENIZER_FILE, train_tokenizer

CORPUS_FILE: Final = "corpus.json"
_FORMAT: Final = 1  # of the documents that a seed gives; raised when the generator changes
PAIRS_PER_DOCUMENTS: Final = (1, 2)  # one image-text pair for every two web documents
HELDOUT_DOCUMENTS: Final = 48  # per source; read at the end of a run, never trained on
_HELDOUT_PICTURES: Final = 0.2  # part of the pictures that no training document shows
_ROWS_PER_FILE: Final = 4096
_ROWS_PER_GROUP: Final = 512


@dataclass(frozen=True, slots=True)
class CorpusSummary:
    """What was written."""

    documents: dict[str, int]
    """Documents per source, held-out ones not counted."""
    vocabulary_size: int
    """Tokens of the trained tokenizer."""


@dataclass(frozen=True, slots=True)
class _Row:
    images: list[dict[str, bytes | None] | None]
    texts: list[str | None]
    metadata: str


def make_corpus(
    folder: Path, *, documents: int, seed: int, vocabulary_size: int = 640
) -> CorpusSummary:
    """Write a corpus; the same arguments write the same documents, once.

    Args:
        folder: Created if absent. A corpus of the same arguments that it holds is left as it is.
        documents: Number of web documents; half as many image-text pairs come with them.
        seed: Start of all random choices.
        vocabulary_size: Tokens of the tokenizer, at most.

    Raises:
        ConfigurationError: Less than two documents, or the folder holds another corpus.
    """
    if documents < 2:
        raise ConfigurationError(
            f"--documents: {documents} cannot be used; allowed: at least 2 documents"
        )
    arguments = {
        "format": _FORMAT,
        "documents": documents,
        "seed": seed,
        "vocabulary_size": vocabulary_size,
    }
    existing = _existing(folder, arguments)
    if existing is not None:
        return existing
    shown, heldout = _pictures_by_digit(seed)
    per_pair, per_document = PAIRS_PER_DOCUMENTS
    sources: dict[str, tuple[Callable[[Random], list[Part]], int]] = {
        "web_documents": (web_document, documents),
        "image_text_pairs": (image_text_pair, documents * per_pair // per_document),
    }
    texts: list[str] = []
    for name, (write, count) in sources.items():
        rows = list(_rows(write, count, shown, _random(seed, name)))
        texts += [text for row in rows for text in row.texts if text is not None]
        _write(folder / name, rows)
        rows = list(_rows(write, HELDOUT_DOCUMENTS, heldout, _random(seed, name, "heldout")))
        _write(folder / HELDOUT_FOLDER / name, rows)
    tokenizer = train_tokenizer(texts, vocabulary_size)
    tokenizer.save(str(folder / TOKENIZER_FILE))
    summary = CorpusSummary(
        documents={name: count for name, (_, count) in sources.items()},
        vocabulary_size=tokenizer.get_vocab_size(),
    )
    content = {"arguments": arguments, "summary": asdict(summary)}
    # Last: a folder with this file is complete.
    (folder / CORPUS_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return summary


def _existing(folder: Path, arguments: dict[str, int]) -> CorpusSummary | None:
    path = folder / CORPUS_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        found, summary = content["arguments"], CorpusSummary(**content["summary"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"--out: {path} describes no corpus: {error}") from error
    if found != arguments:
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
    write: Callable[[Random], list[Part]],
    count: int,
    pictures: Sequence[Sequence[bytes]],
    random: Random,
) -> Iterator[_Row]:
    for _ in range(count):
        parts = write(random)
        images: list[dict[str, bytes | None] | None] = [
            {"bytes": random.choice(pictures[part.digit]), "path": None}
            if isinstance(part, DigitPicture)
            else None
            for part in parts
        ]
        texts = [None if isinstance(part, DigitPicture) else part for part in parts]
        metadata = json.dumps([part.digit for part in parts if isinstance(part, DigitPicture)])
        yield _Row(images, texts, metadata)


def _write(folder: Path, rows: Sequence[_Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(rows), _ROWS_PER_FILE)):
        table = pa.Table.from_pylist(
            [asdict(row) for row in rows[start : start + _ROWS_PER_FILE]], schema=SCHEMA
        )
        path = folder / f"part-{number:05d}.parquet"
        pq.write_table(table, path, row_group_size=_ROWS_PER_GROUP)
