"""Reading conversations by number from JSON lines; only the assistant's turns are learned.

A line is `{"turns": [{"role": "user", "content": "...", "images": [...]}, ...]}`; `messages` does
for `turns`. Roles are system, user and assistant. Content is a text, or a list of
`{"type": "text", "text": ...}` and `{"type": "image", ...}`. A picture is a path relative to the
file, `{"path": ...}` or `{"base64": ...}`; those in `images` come before the text of their turn.
"""

from __future__ import annotations

import base64
import binascii
import json
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Final

from trainer.data.documents import (
    BadDocumentError,
    Document,
    Mark,
    Part,
    Reason,
    Skip,
    whole_text,
)
from trainer.data.sources.files import BadShardError, Content, Shards, StoredFile, blocks_of

SUFFIX: Final = ".jsonl"
_ROLES: Final = frozenset({"system", "user", "assistant"})
_BLOCK: Final = 1024  # conversations that are stored together


class ConversationSource:
    """All conversations of one source, by number."""

    def __init__(
        self, name: str, files: Sequence[StoredFile], *, max_bad_in_a_row: int = 16
    ) -> None:
        """Find where every line begins.

        Raises:
            ConfigurationError: Too many files cannot be read, or there is no line.
        """
        self._name = name
        self._shards = Shards(name, files, _lines, max_bad_in_a_row=max_bad_in_a_row)
        self.skipped: Sequence[Skip] = self._shards.skipped
        self.blocks: Sequence[int] = blocks_of(self._shards.counts, _BLOCK)

    def __len__(self) -> int:
        return len(self._shards)

    def document(self, index: int) -> Document:
        """Return the conversation with this number.

        Raises:
            BadDocumentError: Its line is something else, or a picture cannot be read.
            IndexError: There is no such number.
        """
        shard, number = self._shards.locate(index)
        file, lines = self._shards.files[shard], self._shards.indexes[shard]
        sample_id = f"{self._name}/{file.name}:{number}"
        try:
            line = file.read(*lines[2 * number : 2 * number + 2])
        except OSError as error:
            raise BadDocumentError(
                sample_id, f"cannot be read: {error}", Reason.UNREADABLE
            ) from error
        parts: list[Part] = []
        learned: list[bool] = []
        for turn in _turns(sample_id, line):
            for part, is_learned in _parts(sample_id, file, turn):
                parts.append(part)
                learned.append(is_learned)
        return Document(sample_id, self._name, tuple(parts), tuple(learned))

    def number(self, sample_id: str) -> int:
        """Return the number of the document with this id.

        Raises:
            KeyError: There is none.
        """
        return self._shards.number(sample_id, lambda _, line: int(line))


def _lines(file: StoredFile) -> Content[array[int]]:
    """Find where every line that is not blank begins and ends."""
    places = array("q")
    start = 0
    try:
        with file.open() as opened:
            for line in opened:
                if line.strip():
                    places.extend((start, start + len(line)))
                start += len(line)
    except OSError as error:
        raise BadShardError(f"{file.url} cannot be read: {error}", Reason.UNREADABLE) from error
    return Content(places, len(places) // 2)


def _turns(sample_id: str, line: bytes) -> list[dict[str, Any]]:
    try:
        content: Any = json.loads(line)
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
        raise BadDocumentError(sample_id, f"the line is no JSON: {error}") from error
    content = content if isinstance(content, dict) else {}
    turns = content.get("turns", content.get("messages"))
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadDocumentError(sample_id, "the line has no list of turns or messages")
    roles = [turn.get("role") for turn in turns]
    unknown = [role for role in roles if not isinstance(role, str) or role not in _ROLES]
    if unknown:
        raise BadDocumentError(
            sample_id, f"roles are {roles}; allowed: {', '.join(sorted(_ROLES))}"
        )
    if "assistant" not in roles:
        raise BadDocumentError(sample_id, "the assistant says nothing", Reason.NOTHING_TO_LEARN)
    return turns


def _parts(sample_id: str, file: StoredFile, turn: dict[str, Any]) -> Iterator[tuple[Part, bool]]:
    """Yield the parts of a turn, each with whether it is learned."""
    is_learned = turn["role"] == "assistant"
    yield f"{turn['role'].capitalize()}:", False
    images = turn.get("images") or []
    content = turn.get("content")
    items = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(items, list) or not isinstance(images, list):
        raise BadDocumentError(sample_id, "content must be a text or a list, images a list")
    for image in images:
        yield _picture(sample_id, file, image), False
    for item in items:
        if isinstance(item, dict) and isinstance(item.get("text"), str):
            yield whole_text(sample_id, item["text"]), is_learned
        else:
            yield _picture(sample_id, file, item), False
    yield Mark.END_OF_TURN, is_learned


def _picture(sample_id: str, file: StoredFile, image: object) -> bytes:
    """Return the file of a picture, by path or inline."""
    given: dict[str, Any] = {"path": image} if isinstance(image, str) else {}
    given = image if isinstance(image, dict) else given
    try:
        if isinstance(given.get("base64"), str):
            return base64.b64decode(given["base64"], validate=True)
        if isinstance(given.get("path"), str):
            return file.sibling(given["path"]).read()
    except (ValueError, binascii.Error) as error:
        raise BadDocumentError(sample_id, f"a picture cannot be read: {error}") from error
    except OSError as error:
        raise BadDocumentError(
            sample_id, f"a picture cannot be read: {error}", Reason.UNREADABLE
        ) from error
    raise BadDocumentError(sample_id, "a picture has neither path nor base64")
