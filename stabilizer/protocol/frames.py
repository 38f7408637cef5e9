"""Frames and their binary form.

A batch body is little-endian throughout:

    4 bytes   magic b"STBF"
    u16       codec version (1)
    u16       flags, zero
    u32       length H of the header
    H bytes   header: JSON of `BatchHeader`
    then, for every block named in the header, with K frames of N series:
      K x i64       steps
      K x f64       times, seconds since the epoch
      K x ceil(N/8) presence bits, least significant first; only if the block says `sparse`
      K x N x f32   values in catalog order; NaN and Inf are data, absent values are 0

An absent value is marked by its bit, never by NaN.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from stabilizer.errors import InvalidInputError
from stabilizer.protocol.batches import BatchHeader, BlockHeader

MAGIC: Final = b"STBF"
CODEC_VERSION: Final = 1
CONTENT_TYPE: Final = "application/vnd.stabilizer.frames"
MAX_BODY_BYTES: Final = 64 * 2**20
_PREFIX = struct.Struct("<4sHHI")

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class FrameBlock:
    """Frames of one catalog, oldest first.

    Args:
        catalog: Id of the catalog.
        steps: Shape [K], int64, completed optimizer steps, not descending.
        times: Shape [K], float64, seconds since the epoch.
        values: Shape [K, N], float32, in catalog order.
        present: Shape [K, N], bool; None if everything was measured.
    """

    catalog: str
    steps: npt.NDArray[np.int64]
    times: npt.NDArray[np.float64]
    values: Float32Array
    present: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A header and its blocks."""

    header: BatchHeader
    blocks: tuple[FrameBlock, ...]


def encode_batch(header: BatchHeader, blocks: Sequence[FrameBlock]) -> bytes:
    """Encode a batch. The list of blocks in the header is rebuilt from the blocks."""
    described = tuple(
        BlockHeader(
            catalog=block.catalog,
            num_frames=len(block),
            num_series=block.values.shape[1],
            sparse=block.present is not None,
        )
        for block in blocks
    )
    head = header.model_copy(update={"blocks": described}).model_dump_json().encode()
    parts = [_PREFIX.pack(MAGIC, CODEC_VERSION, 0, len(head)), head]
    for block in blocks:
        parts.append(np.ascontiguousarray(block.steps, dtype="<i8").tobytes())
        parts.append(np.ascontiguousarray(block.times, dtype="<f8").tobytes())
        if block.present is not None:
            parts.append(np.packbits(block.present, axis=1, bitorder="little").tobytes())
        parts.append(np.ascontiguousarray(block.values, dtype="<f4").tobytes())
    return b"".join(parts)


def decode_batch(body: bytes) -> Batch:
    """Decode a batch.

    Raises:
        InvalidInputError: The body is not a batch; code `malformed_batch`.
    """
    header, offset = _decode_header(body)
    blocks = []
    for index, described in enumerate(header.blocks):
        block, offset = _decode_block(body, offset, described, index)
        blocks.append(block)
    if offset != len(body):
        raise _malformed(
            "body", f"{len(body) - offset} bytes after the last block", "no bytes there"
        )
    return Batch(header, tuple(blocks))


def _decode_header(body: bytes) -> tuple[BatchHeader, int]:
    if len(body) < _PREFIX.size:
        raise _malformed("body", f"{len(body)} bytes", f"at least {_PREFIX.size} bytes")
    magic, version, flags, length = _PREFIX.unpack_from(body)
    if magic != MAGIC:
        raise _malformed("body.magic", magic, f"{MAGIC!r}")
    if version != CODEC_VERSION:
        raise _malformed("body.version", version, str(CODEC_VERSION))
    if flags != 0:
        raise _malformed("body.flags", flags, "0")
    end = _PREFIX.size + length
    if end > len(body):
        raise _malformed(
            "body.header", f"{length} bytes announced", f"{len(body) - _PREFIX.size} at hand"
        )
    try:
        return BatchHeader.model_validate_json(body[_PREFIX.size : end]), end
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in ("header", *first["loc"]))
        raise _malformed(field, first["input"], first["msg"]) from error


def _decode_block(
    body: bytes, offset: int, described: BlockHeader, index: int
) -> tuple[FrameBlock, int]:
    frames, series = described.num_frames, described.num_series
    mask_bytes = frames * ((series + 7) // 8) if described.sparse else 0
    end = offset + 16 * frames + mask_bytes + 4 * frames * series
    if end > len(body):
        raise _malformed(f"blocks.{index}", f"{len(body) - offset} bytes", f"{end - offset} bytes")
    steps = np.frombuffer(body, "<i8", frames, offset)
    times = np.frombuffer(body, "<f8", frames, offset + 8 * frames)
    present = None
    if described.sparse:
        packed = np.frombuffer(body, np.uint8, mask_bytes, offset + 16 * frames)
        bits = np.unpackbits(packed.reshape(frames, -1), axis=1, bitorder="little", count=series)
        present = bits.astype(np.bool_)
    start = offset + 16 * frames + mask_bytes
    values = np.frombuffer(body, "<f4", frames * series, start).reshape(frames, series)
    return FrameBlock(described.catalog, steps, times, values, present), end


def _malformed(field: str, value: object, allowed: str) -> InvalidInputError:
    return InvalidInputError(
        f"{field} is {str(value)[:200]!r}; allowed: {allowed}",
        field=field,
        value=value,
        allowed=allowed,
        code="malformed_batch",
    )
