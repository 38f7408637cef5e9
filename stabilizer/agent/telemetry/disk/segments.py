"""Records in append-only files of a folder, first in, first out.

A record on disk is little-endian:

    4 bytes  magic b"STSP"
    u8       kind, see `RecordKind`
    u32      base
    u32      num_frames
    u32      length of the payload
    u32      CRC-32 of the 13 bytes before and of the payload
    payload

A tail that was cut off by a crash or a full disk fails its length or its sum, and is ignored.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Final

from stabilizer.agent.telemetry.disk.records import Record, RecordKind

_logger = logging.getLogger(__name__)
_MAGIC: Final = b"STSP"
_FIELDS = struct.Struct("<BIII")
_SUM = struct.Struct("<I")
_HEAD_BYTES: Final = len(_MAGIC) + _FIELDS.size + _SUM.size
_KINDS: Final = frozenset(int(kind) for kind in RecordKind)


def encode_record(record: Record) -> bytes:
    """Write a record as it stands on disk."""
    fields = _FIELDS.pack(record.kind, record.base, record.num_frames, len(record.payload))
    total = zlib.crc32(record.payload, zlib.crc32(fields))
    return b"".join((_MAGIC, fields, _SUM.pack(total), record.payload))


@dataclass(frozen=True, slots=True)
class _Head:
    kind: RecordKind
    base: int
    num_frames: int
    length: int
    fields: bytes
    total: int


def _read_head(file: BinaryIO) -> _Head | None:
    """Read the head at the file's position; None at the end or where no record begins."""
    data = file.read(_HEAD_BYTES)
    if len(data) < _HEAD_BYTES or data[: len(_MAGIC)] != _MAGIC:
        return None
    fields = data[len(_MAGIC) : len(_MAGIC) + _FIELDS.size]
    kind, base, num_frames, length = _FIELDS.unpack(fields)
    if kind not in _KINDS:
        return None
    total: int = _SUM.unpack_from(data, len(_MAGIC) + _FIELDS.size)[0]
    return _Head(RecordKind(kind), base, num_frames, length, fields, total)


def _read_record(file: BinaryIO) -> Record | None:
    head = _read_head(file)
    if head is None:
        return None
    payload = file.read(head.length)
    if len(payload) < head.length or zlib.crc32(payload, zlib.crc32(head.fields)) != head.total:
        return None
    return Record(head.kind, head.base, head.num_frames, payload)


@dataclass(slots=True)
class _Segment:
    """One file, as far as it holds whole records."""

    path: Path
    num_bytes: int = 0
    num_frames: int = 0
    num_results: int = 0
    has_first: bool = False

    def count(self, kind: RecordKind, num_frames: int, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self.num_frames += num_frames
        self.num_results += kind is RecordKind.RESULT
        self.has_first = self.has_first or kind is RecordKind.FIRST_BATCH


def _write_whole(writer: FileIO, data: bytes) -> None:
    written = writer.write(data)
    if written != len(data):
        raise OSError(f"{written} of {len(data)} bytes were written")


class SegmentQueue:
    """The records of one session. Used by the sender thread alone.

    Every method may raise OSError; the queue stays usable, and no record in it is lost by that.

    Args:
        folder: Exists and belongs to this queue.
        segment_bytes: Size at which a further file is begun.
        on_lost: Told how many puts a damaged or vanished file had held.
    """

    def __init__(self, folder: Path, segment_bytes: int, on_lost: Callable[[int], None]) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._on_lost = on_lost
        self._segments: deque[_Segment] = deque()
        self._writer: FileIO | None = None
        self._number = 0
        self._offset = 0
        self._read_frames = 0
        self._head: Record | None = None

    def load(self) -> None:
        """Find what an earlier process left; its files are only read, and deleted when done."""
        for path in sorted(self._folder.glob("*.seg")):
            segment = _Segment(path)
            size = path.stat().st_size
            with path.open("rb") as file:
                while (head := _read_head(file)) is not None:
                    end = file.tell() + head.length
                    if end > size:
                        break
                    file.seek(end)
                    segment.count(head.kind, head.num_frames, _HEAD_BYTES + head.length)
            self._segments.append(segment)
            self._number = max(self._number, int(path.stem)) if path.stem.isdigit() else 0

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return sum(segment.num_bytes for segment in self._segments)

    @property
    def num_frames(self) -> int:
        """Puts of frames that wait in it."""
        return sum(segment.num_frames for segment in self._segments) - self._read_frames

    @property
    def begins_attempts(self) -> bool:
        """Whether any record begins an attempt that the collector may not know."""
        return any(segment.has_first for segment in self._segments)

    def __bool__(self) -> bool:
        return bool(self._segments)

    def append(self, record: Record) -> None:
        """Write a record behind the others; whole or, after an OSError, not at all."""
        data = encode_record(record)
        if self._writer is None or self._segments[-1].num_bytes + len(data) > self._segment_bytes:
            self._begin_segment()
        segment = self._segments[-1]
        writer = self._writer
        if writer is None:
            raise OSError(f"{segment.path} is not open")
        try:
            _write_whole(writer, data)
        except OSError:
            self._cut_back(segment)
            raise
        segment.count(record.kind, record.num_frames, len(data))

    def head(self) -> Record | None:
        """Return the oldest record; None if there is none."""
        while self._head is None and self._segments:
            segment = self._segments[0]
            if self._offset < segment.num_bytes:
                self._head = self._read(segment)
                if self._head is not None:
                    break
                _logger.warning("%s is damaged or gone; its rest is left out", segment.path)
                self._on_lost(segment.num_frames - self._read_frames)
            self._remove_oldest()
        return self._head

    def pop(self) -> None:
        """Remove the oldest record; a file whose records are all gone is deleted."""
        record = self.head()
        if record is None:
            return
        self._head = None
        self._offset += _HEAD_BYTES + len(record.payload)
        self._read_frames += record.num_frames
        if self._offset >= self._segments[0].num_bytes:
            self._remove_oldest()

    def drop_oldest(self) -> list[Record]:
        """Delete the oldest file, told as lost; return its results, which are to be kept."""
        segment = self._segments[0]
        self._on_lost(segment.num_frames - self._read_frames)
        results = self._read_results(segment) if segment.num_results else []
        self._remove_oldest()
        return results

    def clear(self) -> None:
        """Forget everything; the files are the caller's to delete."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        self._segments.clear()
        self._head, self._offset, self._read_frames = None, 0, 0

    def close(self) -> None:
        """Write through to the disk and close the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with writer:
                os.fsync(writer.fileno())

    def _read(self, segment: _Segment) -> Record | None:
        try:
            with segment.path.open("rb") as file:
                file.seek(self._offset)
                return _read_record(file)
        except OSError:
            return None

    def _read_results(self, segment: _Segment) -> list[Record]:
        results = []
        with segment.path.open("rb") as file:
            file.seek(self._offset)
            while (record := _read_record(file)) is not None:
                if record.kind is RecordKind.RESULT:
                    results.append(record)
        return results

    def _begin_segment(self) -> None:
        self.close()
        path = self._folder / f"{self._number + 1:08d}.seg"
        opener = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._writer = FileIO(opener, "ab")
        self._number += 1
        self._segments.append(_Segment(path))

    def _cut_back(self, segment: _Segment) -> None:
        """Undo half a record; where not even that works, the next one goes to a new file."""
        writer = self._writer
        if writer is None:
            return
        try:
            os.ftruncate(writer.fileno(), segment.num_bytes)
        except OSError:
            self._writer = None
            writer.close()

    def _remove_oldest(self) -> None:
        segment = self._segments[0]
        if len(self._segments) == 1:
            writer, self._writer = self._writer, None
            if writer is not None:
                writer.close()
        segment.path.unlink(missing_ok=True)
        self._segments.popleft()
        self._offset = 0
        self._read_frames = 0
        self._head = None
