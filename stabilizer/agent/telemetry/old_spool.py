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
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_MAGIC: Final = b"STSP"
_FIELDS = struct.Struct("<BIII")
_CHECKSUM = struct.Struct("<I")
_HEAD_BYTES: Final = len(_MAGIC) + _FIELDS.size + _CHECKSUM.size


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


def read_owner(folder: Path) -> bytes:
    """Return the JSON that describes the process."""
    return (folder / "session.json").read_bytes()


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
