"""Reads the spool of version 0.1, which nothing writes any more.

One folder per process holds `lock` (locked by its process), `session.json`, and append-only
segments `*.seg` of little-endian records:

    4 bytes  magic b"STSP"
    u8       kind
    u32      base
    u32      num_frames
    u32      length of the payload
    u32      CRC-32 of the 13 bytes before and of the payload
    payload
"""

from __future__ import annotations

import fcntl
import os
import struct
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from stabilizer.errors import InvalidInputError
from stabilizer.protocol.batches import AttemptStart, BatchHeader
from stabilizer.protocol.frames import decode_batch, encode_batch
from stabilizer.protocol.runs import RunRegister

_BATCH: Final = 1
_FIRST_BATCH: Final = 2
"""A batch that begins an attempt which the collector did not know when it was written."""
_RESULT: Final = 3
_MAGIC: Final = b"STSP"
_FIELDS = struct.Struct("<BIII")
_CHECKSUM = struct.Struct("<I")
_HEAD_BYTES: Final = len(_MAGIC) + _FIELDS.size + _CHECKSUM.size


class _OldStart(BaseModel):
    """Where an attempt after the first begins."""

    start: AttemptStart
    base: int
    """Base under which its parent is written."""


class OldOwner(BaseModel):
    """The process that wrote a folder; its `session.json`.

    It counted its attempts from 1. The collector's number of its first attempt is the base; until
    that was known, numbers were written under base 1.
    """

    message: RunRegister
    run_id: str | None = None
    base: int | None = None
    starts: dict[int, _OldStart] = {}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder.

    Raises:
        BlockingIOError: A living process holds it.
        OSError: The folder is gone, or the file system has no locks.
    """
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (folder / "lock").stat().st_ino != os.fstat(descriptor).st_ino:
            raise BlockingIOError(f"{folder} was replaced while its lock was taken")
        yield
    finally:
        os.close(descriptor)


def read_owner(folder: Path) -> OldOwner:
    """Return the process that wrote a folder.

    Raises:
        FileNotFoundError: It has not said.
        ValidationError: What it wrote is damaged.
    """
    return OldOwner.model_validate_json((folder / "session.json").read_bytes())


def read_records(
    folder: Path, on_lost: Callable[[int], None]
) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield (kind, base, num_frames, payload), oldest first.

    Args:
        folder: Locked by the caller.
        on_lost: Called with the number of frames of every damaged record.
    """
    for path in sorted(folder.glob("*.seg")):
        yield from _parse(path.read_bytes(), on_lost)


def _parse(data: bytes, on_lost: Callable[[int], None]) -> Iterator[tuple[int, int, int, bytes]]:
    start = 0
    while data.startswith(_MAGIC, start) and start + _HEAD_BYTES <= len(data):
        fields = data[start + len(_MAGIC) : start + len(_MAGIC) + _FIELDS.size]
        kind, base, num_frames, length = _FIELDS.unpack(fields)
        (checksum,) = _CHECKSUM.unpack_from(data, start + len(_MAGIC) + _FIELDS.size)
        end = start + _HEAD_BYTES + length
        if end > len(data):
            return  # cut off by a crash in the middle of the write
        payload = data[start + _HEAD_BYTES : end]
        if zlib.crc32(payload, zlib.crc32(fields)) == checksum:
            yield kind, base, num_frames, payload
        else:
            on_lost(num_frames)
        start = end


def convert(
    folder: Path, owner: OldOwner, on_lost: Callable[[int], None]
) -> Iterator[tuple[int, int, bytes]]:
    """Yield (kind, num_frames, payload) as today's agent writes them, oldest first.

    An attempt that the collector has numbered keeps its number. One that it has never received,
    since its first batch is still here, gets an id and is numbered when it arrives.

    Args:
        folder: Locked by the caller.
        owner: Of the folder.
        on_lost: Called with the number of frames of every damaged record.
    """
    ids = _mint_ids(folder, owner)
    for kind, base, num_frames, payload in read_records(folder, on_lost):
        if kind == _RESULT:
            yield kind, num_frames, payload
            continue
        try:
            batch = decode_batch(payload)
        except InvalidInputError:
            on_lost(num_frames)
            continue
        number = _local(batch.header, base)
        names: dict[str, object] = {"attempt": _known_number(owner, number), "attempt_start": None}
        if number in ids:
            start = _start(owner, number, ids)
            names = {"attempt": None, "attempt_id": ids[number], "attempt_start": start}
        # The snapshots were in the memory of that process.
        header = batch.header.model_copy(update={**names, "snapshots": None})
        yield _BATCH, num_frames, encode_batch(header, batch.blocks)


def _mint_ids(folder: Path, owner: OldOwner) -> dict[int, str]:
    """Return an id, by local number, for every attempt that the collector has not received."""
    is_unknown = {_FIRST_BATCH} if owner.run_id is not None else {_FIRST_BATCH, _BATCH}
    ids: dict[int, str] = {}
    for kind, base, _, payload in read_records(folder, lambda _: None):
        if kind in is_unknown:
            with suppress(InvalidInputError):
                ids.setdefault(_local(decode_batch(payload).header, base), uuid.uuid4().hex)
    return ids


def _local(header: BatchHeader, base: int) -> int:
    return (header.attempt or base) - base + 1


def _known_number(owner: OldOwner, number: int) -> int:
    return (owner.base or 1) + number - 1


def _start(owner: OldOwner, number: int, ids: dict[int, str]) -> AttemptStart:
    known = owner.starts.get(number)
    if known is None:
        return AttemptStart(from_step=owner.message.start_step)
    parent: dict[str, object] = {"parent": None}
    if known.start.parent is not None and known.start.parent >= known.base:
        local = known.start.parent - known.base + 1
        parent = {"parent_id": ids.get(local)}
        parent["parent"] = None if local in ids else _known_number(owner, local)
    return known.start.model_copy(update=parent)
