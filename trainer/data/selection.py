"""Exclusion of documents: by limits, by id, or by position."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from os import SEEK_END
from pathlib import Path
from typing import IO, Any

from stabilizer.errors import ConfigurationError
from trainer.config import FiltersConfig
from trainer.data.documents import Document, Reason, Skip
from trainer.data.sequences import picture_size


@dataclass(frozen=True, slots=True)
class FilterVerdict:
    """Verdict of the filters on a document."""

    document: Document
    """The document with the pictures that pass."""
    rejected: tuple[Reason, ...]
    """Why it is excluded; empty: it is not."""
    removed: tuple[Skip, ...]
    """Number of removed pictures."""


class DocumentFilter:
    """The limits of one source."""

    def __init__(self, config: FiltersConfig) -> None:
        """Take the limits.

        Raises:
            ConfigurationError: The file of flagged words cannot be read.
        """
        self._config = config
        self._flagged = _read_words(config.flagged_words) if config.flagged_words else frozenset()
        self._is_idle = config == FiltersConfig()

    def judge(self, document: Document) -> FilterVerdict:
        """Remove unfit pictures, and list every limit that the rest violates."""
        if self._is_idle:
            return FilterVerdict(document, (), ())
        kept, removed = self._without_unfit_pictures(document)
        reasons = [
            *self._count_reasons(len(kept.text.split()), len(kept.pictures)),
            *self._text_reasons(kept.text),
        ]
        return FilterVerdict(kept, tuple(reasons), removed)

    def _without_unfit_pictures(self, document: Document) -> tuple[Document, tuple[Skip, ...]]:
        keeps = [not isinstance(part, bytes) or self._is_fit(part) for part in document.parts]
        if all(keeps):
            return document, ()
        learned = document.learned or (True,) * len(keeps)
        kept = replace(
            document,
            parts=tuple(part for part, keep in zip(document.parts, keeps, strict=True) if keep),
            learned=tuple(flag for flag, keep in zip(learned, keeps, strict=True) if keep)
            if document.learned
            else None,
        )
        skip = Skip("pictures", document.source, Reason.PICTURE_SIZE, document.sample_id)
        return kept, (skip,) * keeps.count(False)

    def _is_fit(self, file: bytes) -> bool:
        config = self._config
        if (config.min_picture_side, config.max_picture_side, config.max_aspect_ratio) == (
            None,
            None,
            None,
        ):
            return True
        size = picture_size(file)
        if size is None or min(size) < 1:
            return True  # the decoder reports the problem
        short, long = min(size), max(size)
        return (
            _within(short, config.min_picture_side, None)
            and _within(long, None, config.max_picture_side)
            and _within(long / short, None, config.max_aspect_ratio)
        )

    def _count_reasons(self, words: int, pictures: int) -> Iterable[Reason]:
        config = self._config
        if not _within(words, config.min_words, None):
            yield Reason.TOO_FEW_WORDS
        if not _within(words, None, config.max_words):
            yield Reason.TOO_MANY_WORDS
        if not _within(pictures, config.min_pictures, None):
            yield Reason.TOO_FEW_PICTURES
        if not _within(pictures, None, config.max_pictures):
            yield Reason.TOO_MANY_PICTURES

    def _text_reasons(self, text: str) -> Iterable[Reason]:
        config = self._config
        words = config.max_word_repetition
        if words is not None and word_repetition(text, config.word_ngram) > words:
            yield Reason.REPEATED_WORDS
        characters = config.max_char_repetition
        if characters is not None and char_repetition(text, config.char_ngram) > characters:
            yield Reason.REPEATED_CHARACTERS
        if self._flagged and self._flagged_ratio(text) > config.max_flagged_ratio:
            yield Reason.FLAGGED_WORDS

    def _flagged_ratio(self, text: str) -> float:
        words = [word.strip(".,;:!?\"'()[]{}<>").casefold() for word in text.split()]
        return sum(word in self._flagged for word in words) / max(len(words), 1)


def word_repetition(text: str, n: int) -> float:
    """Return the part of a text's word n-grams that occur more than once, 0 to 1; 0 if it has none.

    Args:
        text: Any text; case does not matter.
        n: Words in an n-gram.
    """
    words = text.casefold().split()
    return _repetition([tuple(words[i : i + n]) for i in range(len(words) - n + 1)])


def char_repetition(text: str, n: int) -> float:
    """Return the part of a text's character n-grams that occur more than once; 0 if it has none.

    Args:
        text: Any text.
        n: Characters in an n-gram.
    """
    return _repetition([text[i : i + n] for i in range(len(text) - n + 1)])


def _repetition(ngrams: Sequence[Hashable]) -> float:
    counts = Counter(ngrams)
    repeated = sum(count for count in counts.values() if count > 1)
    return repeated / max(len(ngrams), 1)


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _read_words(path: str) -> frozenset[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"data.filters.flagged_words: {path} cannot be read: {error}"
        ) from error
    words = (line.split("#", 1)[0].strip().casefold() for line in lines)
    return frozenset(word for word in words if word)


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Excluded documents and positions."""

    sample_ids: frozenset[str] = frozenset()
    """Documents."""
    positions: tuple[tuple[int, int], ...] = ()
    """Windows of positions, [from, to), sorted and apart from each other."""

    def holds(self, position: int, sample_id: str) -> bool:
        """Return whether this document is excluded everywhere."""
        return sample_id in self.sample_ids or self.holds_position(position)

    def holds_position(self, position: int) -> bool:
        """Return whether the document of this position is excluded."""
        place = bisect_right(self.positions, position, key=lambda window: window[0])
        return place > 0 and position < self.positions[place - 1][1]


def read_quarantine(path: Path) -> Quarantine:
    """Read a quarantine file.

    Raises:
        ConfigurationError: It cannot be read, or a line says something else; with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"data.quarantine: {path} cannot be read: {error}") from error
    sample_ids: set[str] = set()
    positions: list[tuple[int, int]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content: Any = json.loads(line)
            if "sample_id" in content:
                sample_ids.add(_sample_id(content["sample_id"]))
            else:
                positions.append(_window(content["positions"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"data.quarantine: {path}:{number}: {line[:80]!r} cannot be used; allowed: "
                '{"sample_id": "..."} or {"positions": [from, to]}'
            ) from error
    return Quarantine(frozenset(sample_ids), tuple(_merged(positions)))


def add_to_quarantine(path: Path, sample_ids: Iterable[str], *, remark: str) -> list[str]:
    """Append documents to a quarantine file, once each; create it if absent.

    Args:
        path: The file.
        sample_ids: Which documents.
        remark: Why, for the reader of the file.

    Returns:
        Those that were not there before.

    Raises:
        ConfigurationError: The file holds something else, or cannot be written.
    """
    known = read_quarantine(path).sample_ids if path.exists() else frozenset()
    new = [name for name in dict.fromkeys(sample_ids) if name not in known]
    lines = "".join(json.dumps({"sample_id": name, "remark": remark}) + "\n" for name in new)
    try:
        with path.open("a+b") as file:  # keep line ends
            file.write(_end_of_line(file) + lines.encode("utf-8") if new else b"")
    except OSError as error:
        raise ConfigurationError(f"data.quarantine: {path} cannot be written: {error}") from error
    return new


def _end_of_line(file: IO[bytes]) -> bytes:
    """Return what precedes a new line: a line end, if the last line has none."""
    if not file.seek(0, SEEK_END):
        return b""
    file.seek(-1, SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"


def _merged(windows: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(windows):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _sample_id(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a sample_id is a text")
    return value


def _window(value: Sequence[object]) -> tuple[int, int]:
    start, end = value
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end:
        raise ValueError("a window is two positions, the first below the second")
    return start, end
