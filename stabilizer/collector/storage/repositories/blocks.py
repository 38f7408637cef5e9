"""Encoding of frames in the database. Each row names its codec."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from stabilizer.errors import StorageError
from stabilizer.protocol.frames import FrameBlock

RAW: Final = 0
"""Codec: little-endian int64 steps, float64 times, presence bits, float32 values."""

MERGE_BYTES: Final = 4 * 2**20
"""Rows are merged up to about so many bytes of values: many batches hold a single frame."""


class StoredFrames(Protocol):
    """A row of frames."""

    attempt: int
    codec: int
    num_frames: int
    steps: bytes
    times: bytes
    present: bytes | None
    values: bytes


class StoredSteps(Protocol):
    """A row of frames without its values."""

    codec: int
    num_frames: int
    steps: bytes
    present: bytes | None


def encode(block: FrameBlock) -> dict[str, object]:
    """Encode a block as the columns of a row."""
    present = block.present
    return {
        "catalog_id": block.catalog,
        "first_step": int(block.steps[0]),
        "last_step": int(block.steps[-1]),
        "num_frames": len(block),
        "codec": RAW,
        "steps": np.ascontiguousarray(block.steps, "<i8").tobytes(),
        "times": np.ascontiguousarray(block.times, "<f8").tobytes(),
        "present": None
        if present is None
        else np.packbits(present, axis=1, bitorder="little").tobytes(),
        "values": np.ascontiguousarray(block.values, "<f4").tobytes(),
    }


def decode(rows: Sequence[StoredFrames], catalog_id: str, width: int) -> FrameBlock:
    """Decode rows of one catalog into one block, in order.

    Args:
        rows: At least one.
        catalog_id: Their catalog.
        width: Its number of series.

    Raises:
        StorageError: A newer version wrote a row.
    """
    for row in rows:
        _check_codec(row)
    values = np.frombuffer(b"".join([row.values for row in rows]), "<f4")
    return FrameBlock(
        catalog=catalog_id,
        steps=np.frombuffer(b"".join([row.steps for row in rows]), "<i8"),
        times=np.frombuffer(b"".join([row.times for row in rows]), "<f8"),
        values=values.reshape(-1, width),
        present=_present(rows, width),
    )


def decode_steps(row: StoredSteps, width: int, slots: Sequence[int]) -> npt.NDArray[np.int64]:
    """Decode the steps at which any of the series was measured."""
    _check_codec(row)
    steps = np.frombuffer(row.steps, "<i8")
    if row.present is None:
        return steps
    return steps[_mask(row, width)[:, list(slots)].any(axis=1)]


def merge(
    rows: Iterable[StoredFrames], catalog_id: str, width: int
) -> Iterator[tuple[int, FrameBlock]]:
    """Merge consecutive rows of one attempt; yields (attempt, block)."""
    waiting: list[StoredFrames] = []
    size = 0
    for row in rows:
        if waiting and (row.attempt != waiting[0].attempt or size >= MERGE_BYTES):
            yield waiting[0].attempt, decode(waiting, catalog_id, width)
            waiting, size = [], 0
        waiting.append(row)
        size += len(row.values)
    if waiting:
        yield waiting[0].attempt, decode(waiting, catalog_id, width)


def _present(rows: Sequence[StoredFrames], width: int) -> npt.NDArray[np.bool_] | None:
    if all(row.present is None for row in rows):
        return None
    return np.concatenate([_mask(row, width) for row in rows])


def _mask(row: StoredFrames | StoredSteps, width: int) -> npt.NDArray[np.bool_]:
    if row.present is None:
        return np.ones((row.num_frames, width), np.bool_)
    packed = np.frombuffer(row.present, np.uint8).reshape(row.num_frames, -1)
    return np.unpackbits(packed, axis=1, bitorder="little", count=width).astype(np.bool_)


def _check_codec(row: StoredFrames | StoredSteps) -> None:
    if row.codec != RAW:
        raise StorageError(f"this version cannot read frames with codec {row.codec}")
