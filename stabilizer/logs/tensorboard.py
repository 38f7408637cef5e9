"""TensorBoard event files: scalars, with the tags as names of series.

The framing of records is read here, since a file that is still written on ends within a record; the
records themselves are read by TensorBoard's own protocol classes (`pip install
stabilizer[tensorboard]`). Histograms, images and texts are left out.

Source:
    TFRecord: u64 length, u32 masked CRC-32C of the length, the record, u32 CRC of the record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from stabilizer.errors import ConfigurationError
from stabilizer.logs.rows import LogProblems, LogRow

_HEADER = struct.Struct("<QI")
_FOOTER_BYTES: Final = 4
_MAX_RECORD_BYTES: Final = 256 * 2**20
_DTYPES: Final = {1: "<f4", 2: "<f8"}
"""Data types of TensorFlow: float32, float64."""


class TensorBoardParser:
    """Parses one event file.

    Raises:
        ConfigurationError: TensorBoard is not installed.
    """

    def __init__(self) -> None:
        self.problems = LogProblems()
        try:
            from google.protobuf.message import DecodeError  # noqa: PLC0415  an extra
            from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415  an extra
            from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import (  # noqa: PLC0415
                masked_crc32c,
            )
        except ImportError as error:
            raise ConfigurationError(
                f"{error.name} is not installed; event files need stabilizer[tensorboard]"
            ) from error
        self._event, self._bad_record, self._checksum = Event, DecodeError, masked_crc32c
        self._buffer = b""
        self._is_broken = False
        self._columns: dict[tuple[str, ...], tuple[str, ...]] = {}

    def feed(self, data: bytes) -> Iterator[LogRow]:
        """Parse the records that are complete."""
        if self._is_broken:
            return
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            length, checksum = _HEADER.unpack_from(self._buffer, start)
            head = self._buffer[start : start + 8]
            if length > _MAX_RECORD_BYTES or self._checksum(head) != checksum:
                self.problems.bad_lines += 1  # where the next record begins is not known
                self._is_broken, self._buffer = True, b""
                return
            end = start + _HEADER.size + length + _FOOTER_BYTES
            if end > len(self._buffer):
                break
            record = self._buffer[start + _HEADER.size : end - _FOOTER_BYTES]
            start = end
            yield from self._parse(record)
        self._buffer = self._buffer[start:]

    def close(self) -> Iterator[LogRow]:
        """Count a record that was cut off."""
        self.problems.truncated += bool(self._buffer)
        yield from ()

    def _parse(self, record: bytes) -> Iterator[LogRow]:
        try:
            event = self._event.FromString(record)
        except self._bad_record:
            self.problems.bad_lines += 1
            return
        found = {}
        for value in event.summary.value:
            number = _scalar(value)
            if number is not None:
                found[value.tag] = number
        if found and event.step >= 0:
            names = tuple(found)
            yield LogRow(
                step=event.step,
                columns=self._columns.setdefault(names, names),
                values=np.array([*found.values()], np.float64),
                time=event.wall_time,
            )


def _scalar(value: Any) -> float | None:  # noqa: ANN401  a generated class
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return float(value.simple_value)
    if kind != "tensor" or value.tensor.dtype not in _DTYPES or value.tensor.tensor_shape.dim:
        return None
    tensor = value.tensor
    stored = tensor.float_val or tensor.double_val
    if stored:
        return float(stored[0])
    content = np.frombuffer(tensor.tensor_content, _DTYPES[tensor.dtype])
    return float(content[0]) if content.size == 1 else None
