"""Documents, their sources, and the reasons for skipping them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final, Protocol, TypeAlias

from stabilizer.errors import StabilizerError


class Reason(StrEnum):
    """Reason for skipping a document, picture or shard; the label `reason` of the counters."""

    UNREADABLE = "unreadable"
    WRONG_SCHEMA = "wrong_schema"
    PICTURE_UNDECODABLE = "picture_undecodable"
    PICTURE_TOO_LARGE = "picture_too_large"
    NOTHING_TO_LEARN = "nothing_to_learn"
    QUARANTINED = "quarantined"
    TOO_FEW_WORDS = "too_few_words"
    TOO_MANY_WORDS = "too_many_words"
    REPEATED_WORDS = "repeated_words"
    REPEATED_CHARACTERS = "repeated_characters"
    FLAGGED_WORDS = "flagged_words"
    TOO_FEW_PICTURES = "too_few_pictures"
    TOO_MANY_PICTURES = "too_many_pictures"
    PICTURE_SIZE = "picture_size"
    NO_ROOM = "no_room"


DAMAGE: Final = frozenset(
    {
        Reason.UNREADABLE,
        Reason.WRONG_SCHEMA,
        Reason.PICTURE_UNDECODABLE,
        Reason.PICTURE_TOO_LARGE,
        Reason.NOTHING_TO_LEARN,
    }
)
"""Reasons that are damage; all other reasons are configured."""


class BadDocumentError(StabilizerError):
    """An unusable document. It is skipped and counted."""

    code = "bad_document"

    def __init__(self, sample_id: str, problem: str, reason: Reason = Reason.WRONG_SCHEMA) -> None:
        """Name the document and the problem."""
        super().__init__(f"{sample_id}: {problem}")
        self.sample_id = sample_id
        self.reason = reason


def whole_text(sample_id: str, text: str) -> str:
    """Return a text of a document, if it can be written down.

    JSON may name half of a surrogate pair, which no tokenizer and no file takes.

    Raises:
        BadDocumentError: It holds one.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadDocumentError(sample_id, f"a text is no Unicode: {error}") from error
    return text


class Mark(Enum):
    """Parts of a document beside text and pictures."""

    END_OF_TURN = "end_of_turn"


Part: TypeAlias = str | bytes | Mark
"""A paragraph, the file of a picture, or a mark."""


@dataclass(frozen=True, slots=True)
class Document:
    """Paragraphs and pictures in their order."""

    sample_id: str
    """source/file:number; the same document has the same id in every run."""
    source: str
    """Name of the source it is from."""
    parts: tuple[Part, ...]
    """Not empty."""
    learned: tuple[bool, ...] | None = None
    """Which parts are predicted; None: all."""

    @property
    def text(self) -> str:
        """All paragraphs, a line each."""
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> list[bytes]:
        """The files of all pictures."""
        return [part for part in self.parts if isinstance(part, bytes)]


@dataclass(frozen=True, slots=True)
class Skip:
    """A skipped document, picture or shard."""

    what: str
    """documents, pictures or shards."""
    source: str
    """Name of the source."""
    reason: Reason
    """Why."""
    sample_id: str
    """Which document (or shard)."""


class DocumentSource(Protocol):
    """Documents by number; the same number always returns the same document."""

    @property
    def blocks(self) -> Sequence[int]:
        """Documents in each stretch that is read at once, in order."""

    @property
    def skipped(self) -> Sequence[Skip]:
        """Unusable shards; their documents have no numbers."""

    def __len__(self) -> int: ...

    def document(self, index: int) -> Document:
        """Return the document with this number.

        Raises:
            BadDocumentError: It is unusable.
            IndexError: There is no such number.
        """
        ...

    def number(self, sample_id: str) -> int:
        """Return the number of the document with this id.

        Raises:
            KeyError: There is none.
        """
        ...
