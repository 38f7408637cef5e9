"""Numbers of attempts: the job counts from 1 until the collector says where its first one stands.

The collector's number for the job's first attempt is the base. A number that was written down under
one base is moved by the difference when it is sent under another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict

from stabilizer.protocol.batches import AttemptStart, BatchHeader, SnapshotInfo

UNREGISTERED_BASE = 1
"""The base while the collector has not said another."""


class Start(BaseModel):
    """The start of an attempt, as the job gave it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: AttemptStart
    base: int
    """Base under which its parent is written."""

    @classmethod
    def given(cls, start: AttemptStart, base: int) -> Self:
        """Note a start whose parent is an attempt of this process.

        Args:
            start: As the job gave it.
            base: The base at present; a parent below it was numbered before it was known.
        """
        is_early = start.parent is not None and start.parent < base
        return cls(start=start, base=UNREGISTERED_BASE if is_early else base)


class AttemptBook:
    """Counts the attempts of this process.

    The training thread begins attempts, the sender sets the base; both are single assignments.
    """

    def __init__(self) -> None:
        self._base: int | None = None
        self._local = 1

    @property
    def base(self) -> int:
        """The collector's number of the first attempt; 1 while it is unknown."""
        return UNREGISTERED_BASE if self._base is None else self._base

    @property
    def local(self) -> int:
        """The present attempt of this process, from 1."""
        return self._local

    @property
    def number(self) -> int:
        """The present attempt as the collector counts, as far as that is known."""
        return self.base + self._local - 1

    def begin(self) -> int:
        """Count one further attempt; return its local number."""
        self._local += 1
        return self._local

    def set_base(self, number: int) -> None:
        """Take over the collector's number for the first attempt."""
        self._base = number


class SnapshotNumbers:
    """Remembers in which local attempt each held snapshot was taken.

    A snapshot is taken under the number known at that time, and stays in the inventory when a late
    registration changes the numbers.
    """

    def __init__(self) -> None:
        self._local: dict[str, int] = {}

    def to_local(self, infos: Iterable[SnapshotInfo], base: int) -> tuple[SnapshotInfo, ...]:
        """Write an inventory in local attempt numbers.

        Args:
            infos: The whole inventory, in the numbers of the time each was taken.
            base: The base at present; a number below it was given before it was known.
        """
        seen: dict[str, int] = {}
        moved = []
        for info in infos:
            fresh = info.attempt - base + 1 if info.attempt >= base else info.attempt
            seen[info.id] = self._local.get(info.id, fresh)
            moved.append(info.model_copy(update={"attempt": seen[info.id]}))
        self._local = seen
        return tuple(moved)


def move_snapshots(
    infos: Sequence[SnapshotInfo] | None, shift: int
) -> tuple[SnapshotInfo, ...] | None:
    """Add a shift to the attempts of an inventory."""
    if infos is None:
        return None
    return tuple(
        info.model_copy(update={"attempt": max(1, info.attempt + shift)}) for info in infos
    )


def move_start(start: AttemptStart, old_base: int, new_base: int) -> AttemptStart:
    """Write the start of an attempt under another base.

    A parent from before this process means nothing to a collector that counts differently.
    """
    if start.parent is None or old_base == new_base:
        return start
    parent = start.parent + new_base - old_base if start.parent >= old_base else None
    return start.model_copy(update={"parent": parent})


def move_header(header: BatchHeader, old_base: int, new_base: int) -> BatchHeader:
    """Write a batch header under another base."""
    shift = new_base - old_base
    start = header.attempt_start
    return header.model_copy(
        update={
            "attempt": (header.attempt or 1) + shift,
            "attempt_start": None if start is None else move_start(start, old_base, new_base),
            "snapshots": move_snapshots(header.snapshots, shift),
        }
    )
