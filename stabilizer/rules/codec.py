"""The saved form of a brain: a JSON head and raw arrays, compressed. No pickle.

4 bytes  magic b"STBR"
u16      version
then, compressed with zlib:
  u32    length of the head
  head   JSON: plain data, and for every array its name, type, shape and offset
  rest   the arrays, little-endian, one after another
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from stabilizer.errors import ConfigurationError

MAGIC: Final = b"STBR"
VERSION: Final = 1
MAX_BYTES: Final = 2**31
_PREFIX = struct.Struct("<4sH")
_LENGTH = struct.Struct("<I")

Arrays = Mapping[str, npt.NDArray[np.generic]]


def encode_state(head: Mapping[str, Any], arrays: Arrays) -> bytes:
    """Write plain data and arrays."""
    index, parts, offset = [], [], 0
    for name, array in arrays.items():
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        data = np.ascontiguousarray(little).tobytes()
        index.append([name, little.dtype.str, list(array.shape), offset])
        parts.append(data)
        offset += len(data)
    text = json.dumps({"head": head, "arrays": index}, separators=(",", ":")).encode()
    body = zlib.compress(b"".join([_LENGTH.pack(len(text)), text, *parts]), level=1)
    return _PREFIX.pack(MAGIC, VERSION) + body


def decode_state(state: bytes) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Read plain data and arrays.

    Raises:
        ConfigurationError: It is not a saved state, or one of another version.
    """
    if len(state) < _PREFIX.size:
        raise _refused(f"it has {len(state)} bytes")
    magic, version = _PREFIX.unpack_from(state)
    if magic != MAGIC or version != VERSION:
        raise _refused(f"it begins with {magic!r}, version {version}; allowed: version {VERSION}")
    try:
        body = _inflate(state[_PREFIX.size :])
        (length,) = _LENGTH.unpack_from(body)
        content = json.loads(body[_LENGTH.size : _LENGTH.size + length])
        start = _LENGTH.size + length
        arrays = {
            name: np.frombuffer(
                body, np.dtype(kind), int(np.prod(shape, dtype=np.int64)), start + offset
            ).reshape(shape)
            for name, kind, shape, offset in content["arrays"]
        }
        return content["head"], arrays
    except (zlib.error, struct.error, ValueError, KeyError, TypeError) as error:
        raise _refused(f"it is damaged: {error}") from error


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    body = inflater.decompress(data, MAX_BYTES)
    if not inflater.eof or inflater.unused_data:
        raise ValueError("its length is not what it should be")
    return body


def _refused(why: str) -> ConfigurationError:
    return ConfigurationError(f"the saved state of the rules cannot be used: {why}")
