"""A synthetic corpus: documents whose pictures and text agree, written in every format."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits

from stabilizer.errors import ConfigurationError
from trainer.data.building import HELDOUT_FOLDER
from trainer.data.sources.parquet import SCHEMA
from trainer.data.tokenizer import TOKENIZER_FILE, train_tokenizer

NUMBERS: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
)

# Not visible in any picture: drawn at random, so that the loss has a floor well above 0
# and the difference between two runs is not the difference between two small numbers.
_NAMES: Final = (
    *("anna", "ben", "clara", "david", "emma", "felix", "greta", "hugo", "ida", "jonas"),
    *("karin", "leo", "mara", "nils", "olga", "paul", "rosa", "simon", "tom", "vera"),
)
_COLOURS: Final = ("black", "blue", "brown", "green", "grey", "orange", "purple", "red", "white")
_PLACES: Final = (
    *("berlin", "bern", "lima", "lyon", "madrid", "milan", "modena", "oslo", "paris", "prague"),
    *("rome", "sofia", "tokyo", "turin", "vienna", "warsaw"),
)
_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@dataclass(frozen=True, slots=True)
class DigitPicture:
    """The place of a picture of this digit; which one is chosen later."""

    digit: int


Part: TypeAlias = str | DigitPicture


def web_document(random: Random) -> list[Part]:
    """Write one interleaved document: several paragraphs, up to three pictures, or none."""
    return random.choices(_KINDS, weights=_KIND_WEIGHTS)[0](random)


def image_text_pair(random: Random) -> list[Part]:
    """Write one picture and its caption."""
    digit = random.randrange(10)
    caption = random.choice(
        (
            "a handwritten {word} in {colour} ink, found in {place}.",
            "the digit {word} on {colour} paper, written by {name}.",
            "a small picture of a {word}, which is {parity}, from {place}.",
            "{word}, written by {name} in {place}. after it comes {after}.",
        )
    )
    return [DigitPicture(digit), _fill(random, caption, digit)]


def conversation(random: Random, pictures: Sequence[Sequence[bytes]]) -> dict[str, Any]:
    """Write one conversation about one or two pictures, as a line of JSON lines.

    Args:
        random: Draws everything.
        pictures: PNG files by digit.
    """
    digits = [random.randrange(10) for _ in range(random.choice((1, 1, 2)))]
    images = [
        {"base64": base64.b64encode(random.choice(pictures[digit])).decode()} for digit in digits
    ]
    questions = _questions_about_one if len(digits) == 1 else _questions_about_two
    turns: list[dict[str, Any]] = []
    for question, answer in questions(random, digits):
        turns += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    turns[0]["images"] = images
    return {"turns": turns}


def _questions_about_one(random: Random, digits: list[int]) -> list[tuple[str, str]]:
    (digit,) = digits
    asked = [
        (
            _fill(random, "{name} asks: which digit is this?"),
            f"this is the digit {NUMBERS[digit]}.",
        ),
        ("is it even or odd?", _fill(random, "{word} is {parity}.", digit)),
        ("what comes after it?", _fill(random, "after it comes {after}.", digit)),
    ]
    return asked[: random.choice((1, 2, 3))]


def _questions_about_two(random: Random, digits: list[int]) -> list[tuple[str, str]]:
    first, second = digits
    return [
        (
            _fill(random, "{name} asks: which digits are these?"),
            f"{NUMBERS[first]} and {NUMBERS[second]}.",
        ),
        ("what is their sum?", f"{_sum_in_words(first, second)}."),
    ]


def _fill(random: Random, text: str, digit: int = 0) -> str:
    return text.format(
        word=NUMBERS[digit],
        parity="even" if digit % 2 == 0 else "odd",
        after=NUMBERS[digit + 1],
        name=random.choice(_NAMES),
        colour=random.choice(_COLOURS),
        place=random.choice(_PLACES),
        day=random.choice(_DAYS),
    )


def _describe(random: Random) -> list[Part]:
    parts: list[Part] = [_fill(random, "{name} shows digits from {place}.")]
    for _ in range(2):
        digit = random.randrange(10)
        text = _fill(random, "this {colour} digit is a {word}, and it is {parity}.", digit)
        parts += [DigitPicture(digit), text]
    return parts


def _sum(random: Random) -> list[Part]:
    first, second = random.randrange(10), random.randrange(10)
    return [
        _fill(random, "{name} adds two numbers on {day}. the first:"),
        DigitPicture(first),
        f"it shows {NUMBERS[first]}. the second:",
        DigitPicture(second),
        f"it shows {NUMBERS[second]}. {_sum_in_words(first, second)}.",
    ]


def _sum_in_words(first: int, second: int) -> str:
    return f"{NUMBERS[first]} plus {NUMBERS[second]} is {NUMBERS[first + second]}"


def _order(random: Random) -> list[Part]:
    digits = random.sample(range(10), 3)
    words = ", ".join(NUMBERS[digit] for digit in digits)
    ordered = ", ".join(NUMBERS[digit] for digit in sorted(digits))
    pictures: list[Part] = [DigitPicture(digit) for digit in digits]
    return [
        _fill(random, "{name} put three {colour} pictures in a row:"),
        *pictures,
        f"we read {words}. from small to large: {ordered}.",
    ]


def _compare(random: Random) -> list[Part]:
    first, second = random.sample(range(10), 2)
    relation = "smaller" if first < second else "larger"
    return [
        DigitPicture(first),
        _fill(random, "on {day} {name} wrote a {word} in {place}.", first),
        DigitPicture(second),
        _fill(random, "on {day} {name} wrote a {word}. ", second)
        + f"{NUMBERS[first]} is {relation} than {NUMBERS[second]}.",
    ]


def _count(random: Random) -> list[Part]:
    start = random.randrange(8)
    words = ", ".join(NUMBERS[number] for number in range(start, start + 8))
    return [
        _fill(random, "this page by {name} has no picture.")
        + f" we count from {NUMBERS[start]} upwards: {words}."
    ]


_KINDS: Final[Sequence[Callable[[Random], list[Part]]]] = (
    _describe,
    _sum,
    _order,
    _compare,
    _count,
)
_KIND_WEIGHTS: Final = (3, 3, 2, 3, 1)


_ROWS_PER_FILE: Final = 4096
_ROWS_PER_GROUP: Final = 512
_SAMPLES_PER_SHARD: Final = 1024


@dataclass(frozen=True, slots=True)
class CorpusRow:
    """A document, as a row of Parquet."""

    images: list[dict[str, bytes | None] | None]
    """Files of pictures, null in the place of a text."""
    texts: list[str | None]
    """Paragraphs, null in the place of a picture."""
    metadata: str
    """JSON."""


def write_parquet(folder: Path, rows: Sequence[CorpusRow]) -> None:
    """Write documents as Parquet files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(rows), _ROWS_PER_FILE)):
        table = pa.Table.from_pylist(
            [asdict(row) for row in rows[start : start + _ROWS_PER_FILE]], schema=SCHEMA
        )
        path = folder / f"part-{number:05d}.parquet"
        pq.write_table(table, path, row_group_size=_ROWS_PER_GROUP)


def write_webdataset(folder: Path, rows: Sequence[CorpusRow]) -> None:
    """Write documents of one PNG picture and one text as shards."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(rows), _SAMPLES_PER_SHARD)):
        with tarfile.open(folder / f"shard-{number:05d}.tar", "w") as tar:
            for place, row in enumerate(rows[start : start + _SAMPLES_PER_SHARD], start):
                picture = next(image["bytes"] for image in row.images if image is not None)
                text = next(text for text in row.texts if text is not None)
                _add(tar, f"{place:08d}.png", picture or b"")
                _add(tar, f"{place:08d}.txt", text.encode())


def write_conversations(folder: Path, conversations: Sequence[dict[str, Any]]) -> None:
    """Write conversations as one file of JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(conversation, ensure_ascii=False) + "\n" for conversation in conversations)
    (folder / "part-00000.jsonl").write_text("".join(lines), encoding="utf-8")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # of time 0 and nobody, so that a seed gives the same bytes
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


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
        """Return what the folder contains; only what was asked for."""
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
        conversations = [conversation(random, pictures) for _ in range(counts[CONVERSATIONS])]
        texts += [turn["content"] for each in conversations for turn in each["turns"]]
        write_conversations(folder / CONVERSATIONS, conversations)
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
) -> Iterator[CorpusRow]:
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
        yield CorpusRow(images, texts, metadata)


_PAIR_WRITERS: Final[dict[str, Callable[[Path, Sequence[CorpusRow]], None]]] = {
    "parquet": write_parquet,
    "webdataset": write_webdataset,
}
