"""What waits for delivery: batches and results, in the order in which the job produced them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class RecordKind(IntEnum):
    """What a record holds; the numbers are those on disk."""

    BATCH = 1
    FIRST_BATCH = 2
    """A batch that begins an attempt which the collector does not know yet."""
    RESULT = 3
    """JSON of a `CommandResult`."""


@dataclass(frozen=True, slots=True)
class Record:
    """One delivery, complete and numbered; sent again it is the same delivery.

    Args:
        kind: What the payload is.
        base: Base under which its attempt numbers were written, see `attempts`.
        num_frames: How many puts it carries, to be counted if it is lost.
        payload: The encoded batch or result.
    """

    kind: RecordKind
    base: int
    num_frames: int
    payload: bytes
