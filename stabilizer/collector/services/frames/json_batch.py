"""Conversion of batches in JSON, as scripts send them, to the binary form."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import groupby, pairwise

import numpy as np
from pydantic import ValidationError

from stabilizer.errors import InvalidInputError
from stabilizer.protocol.batches import BatchHeader, JsonBatch, JsonFrame
from stabilizer.protocol.frames import Batch, FrameBlock
from stabilizer.protocol.series import Catalog

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class ReadBatch:
    """A batch with the catalogs that its frames need, each once."""

    batch: Batch
    catalogs: tuple[Catalog, ...]


def read_json_batch(message: JsonBatch, now: datetime) -> ReadBatch:
    """Convert named values to blocks; consecutive frames with the same names share one.

    Args:
        message: The batch.
        now: Time of frames without one.

    Raises:
        InvalidInputError: A name is not a series, a value exceeds float32, or steps descend.
    """
    _check_order(message.frames)
    catalogs: dict[str, Catalog] = {}
    blocks = []
    position = 0
    for names, group in groupby(message.frames, key=lambda frame: tuple(sorted(frame.values))):
        frames = list(group)
        catalog = _catalog(names, position)
        blocks.append(_block(catalog, names, frames, position, now))
        catalogs[catalog.id] = catalog
        position += len(frames)
    header = BatchHeader(
        attempt=message.attempt,
        attempt_id=message.attempt_id,
        sequence=message.sequence,
        attempt_start=message.attempt_start,
        markers=message.markers,
        snapshots=message.snapshots,
    )
    return ReadBatch(Batch(header, tuple(blocks)), tuple(catalogs.values()))


def _check_order(frames: tuple[JsonFrame, ...]) -> None:
    for position, (before, after) in enumerate(pairwise(frames), start=1):
        if after.step < before.step:
            raise InvalidInputError(
                f"frames.{position}.step is {after.step}; allowed: at least {before.step}, "
                "the step before it",
                field=f"frames.{position}.step",
                value=after.step,
                allowed=f"at least {before.step}",
                code="step_out_of_order",
            )


def _catalog(names: tuple[str, ...], position: int) -> Catalog:
    try:
        return Catalog.of(names)
    except ValueError as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise InvalidInputError(
            f"frames.{position}.values has a name that is not a series: "
            + why.removeprefix("Value error, "),
            field=f"frames.{position}.values",
            value=list(names),
            allowed='names like metric or metric{label="value"}, each series once',
        ) from error


def _block(
    catalog: Catalog,
    names: tuple[str, ...],
    frames: list[JsonFrame],
    position: int,
    now: datetime,
) -> FrameBlock:
    values = np.array([[frame.values[name] for name in names] for frame in frames], np.float64)
    too_large = np.isfinite(values) & (np.abs(values) > _LARGEST)
    if too_large.any():
        row, column = (int(index[0]) for index in np.nonzero(too_large))
        field = f"frames.{position + row}.values.{names[column]}"
        raise InvalidInputError(
            f"{field} is {values[row, column]}, which float32 cannot hold",
            field=field,
            value=float(values[row, column]),
            allowed=f"at most {_LARGEST:.6g}, or nan, inf, -inf",
            code="value_out_of_range",
        )
    times = [(frame.time or now).timestamp() for frame in frames]
    return FrameBlock(
        catalog=catalog.id,
        steps=np.array([frame.step for frame in frames], np.int64),
        times=np.array(times, np.float64),
        values=values.astype(np.float32),
    )
