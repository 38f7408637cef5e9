"""Reading pictures with captions by number from the shards of a WebDataset.

A shard is a plain tar. Members that follow each other and have the same name up to the first dot
are one sample: a picture (.jpg, .jpeg, .png, .webp) and a caption (.txt, or .json with `caption`
or `text`); other members are not read. The headers of all members are read once, at the start, and
a sample is then one read at its place in the file.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import IO, Any, Final, NamedTuple

from trainer.data.documents import BadDocumentError, Document, Part, Reason, Skip, whole_text
from trainer.data.sources.files import BadShardError, Content, Shards, StoredFile, blocks_of

SUFFIX: Final = ".tar"
_PICTURES: Final = frozenset({"jpg", "jpeg", "png", "webp"})
_CAPTIONS: Final = ("txt", "json")  # the first one counts
_CAPTION_KEYS: Final = ("caption", "text")
_BLOCK: Final = 1024  # samples that are stored together
_MAX_BYTES: Final = 2**28  # of one sample; what is larger is an attack or a mistake
_ABSENT: Final = -1


class _Span(NamedTuple):
    """Where the content of a member lies in its shard."""

    start: int
    size: int


@dataclass(slots=True)
class _ShardIndex:
    """Positions of all samples of a shard, about 50 bytes each."""

    keys: list[str] = field(default_factory=list)
    pictures: array[int] = field(default_factory=lambda: array("q"))
    """start and size of each picture, _ABSENT where there is none."""
    captions: array[int] = field(default_factory=lambda: array("q"))
    is_json: array[int] = field(default_factory=lambda: array("b"))

    def add(self, key: str, members: dict[str, _Span]) -> None:
        """Add a sample, given its members by ending."""
        picture = next((span for ending, span in members.items() if ending in _PICTURES), None)
        ending = next((ending for ending in _CAPTIONS if ending in members), None)
        self.keys.append(key)
        self.pictures.extend(picture or _Span(_ABSENT, 0))
        self.captions.extend(members[ending] if ending else _Span(_ABSENT, 0))
        self.is_json.append(ending == "json")

    def spans(self, number: int) -> tuple[_Span, _Span]:
        """Return where picture and caption of a sample are."""
        place = slice(2 * number, 2 * number + 2)
        return _Span(*self.pictures[place]), _Span(*self.captions[place])


class TarSource:
    """All samples of one source, by number."""

    def __init__(
        self, name: str, files: Sequence[StoredFile], *, max_bad_in_a_row: int = 16
    ) -> None:
        """Read the headers of every shard.

        Raises:
            ConfigurationError: Too many shards are no plain tar, or there is no sample.
        """
        self._name = name
        self._shards = Shards(name, files, _index, max_bad_in_a_row=max_bad_in_a_row)
        self.skipped: Sequence[Skip] = self._shards.skipped
        self.blocks: Sequence[int] = blocks_of(self._shards.counts, _BLOCK)

    def __len__(self) -> int:
        return len(self._shards)

    def document(self, index: int) -> Document:
        """Return the picture with this number, and its caption.

        Raises:
            BadDocumentError: One of the two is absent, or they cannot be read.
            IndexError: There is no such number.
        """
        shard, number = self._shards.locate(index)
        file, found = self._shards.files[shard], self._shards.indexes[shard]
        sample_id = f"{self._name}/{file.name}:{found.keys[number]}"
        picture, caption = found.spans(number)
        for span, what in ((picture, "picture"), (caption, "caption")):
            if span.start == _ABSENT:
                raise BadDocumentError(sample_id, f"it has no {what}")
        image, text = _read(sample_id, file, picture, caption)
        parts: tuple[Part, ...] = (image, _caption(sample_id, text, bool(found.is_json[number])))
        return Document(sample_id, self._name, parts)

    def number(self, sample_id: str) -> int:
        """Return the number of the document with this id.

        Raises:
            KeyError: There is none.
        """
        return self._shards.number(sample_id, lambda index, key: index.keys.index(key))


def _index(file: StoredFile) -> Content[_ShardIndex]:
    """Index the samples of a shard; in a damaged one, those before the damage."""
    index = _ShardIndex()
    flaw: BadShardError | None = None
    try:
        with file.open() as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
            for key, members in groupby(_members(tar), key=lambda member: member[0]):
                index.add(key, {ending: span for _, ending, span in members})
            if not _ends(opened, tar.offset):
                flaw = _bad(file, "it is cut off, or damaged in the middle")
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        if not index.keys:
            raise _bad(file, str(error)) from error
        flaw = _bad(file, str(error))
    return Content(index, len(index.keys), flaw)


def _ends(opened: IO[bytes], offset: int) -> bool:
    """Return whether a tar ends at an offset, with blocks of zeros as tar writes them.

    tarfile takes a header that is damaged for the end as well.
    """
    opened.seek(offset)
    return opened.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _bad(file: StoredFile, problem: str) -> BadShardError:
    return BadShardError(f"{file.url} is not a plain tar: {problem}", Reason.UNREADABLE)


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, _Span]]:
    """Yield key, ending and place of every member that samples are made of."""
    for member in tar:
        folder, base = posixpath.split(member.name)
        stem, _, ending = base.partition(".")
        ending = ending.lower()
        if member.isreg() and stem and (ending in _PICTURES or ending in _CAPTIONS):
            yield posixpath.join(folder, stem), ending, _Span(member.offset_data, member.size)


def _read(sample_id: str, file: StoredFile, *spans: _Span) -> list[bytes]:
    """Read several nearby ranges at once."""
    start = min(span.start for span in spans)
    end = max(span.start + span.size for span in spans)
    if end - start > _MAX_BYTES:
        raise BadDocumentError(
            sample_id, f"{end - start} bytes, more than {_MAX_BYTES}", Reason.PICTURE_TOO_LARGE
        )
    try:
        content = file.read(start, end)
    except OSError as error:
        raise BadDocumentError(sample_id, f"cannot be read: {error}", Reason.UNREADABLE) from error
    if len(content) < end - start:
        raise BadDocumentError(sample_id, "the shard ends before it", Reason.UNREADABLE)
    return [content[span.start - start : span.start - start + span.size] for span in spans]


def _caption(sample_id: str, content: bytes, is_json: bool) -> str:
    try:
        text: Any = json.loads(content) if is_json else content.decode("utf-8")
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
        raise BadDocumentError(sample_id, f"its caption cannot be read: {error}") from error
    if isinstance(text, dict):
        text = next((text[key] for key in _CAPTION_KEYS if key in text), None)
    if not isinstance(text, str) or not text.strip():
        raise BadDocumentError(sample_id, "its caption is no text, or empty")
    return whole_text(sample_id, text.strip())
