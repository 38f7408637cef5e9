"""The journal of frames: stored as they came, read by run, attempt, catalog and step.

Whoever reads gets `FrameBlock`s, whatever the layout: how they lie in the database is known here
only, and each row names its codec.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from stabilizer.collector.storage.models import BatchRow, CatalogRow, FrameRow
from stabilizer.errors import StorageError
from stabilizer.protocol.frames import FrameBlock

RAW: Final = 0
"""Codec: little-endian int64 steps, float64 times, presence bits, float32 values."""


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch as it lies in the journal."""

    run_id: str
    attempt: int
    sequence: int
    version: int
    """The run's version after it: the order of arrival."""
    evaluated: bool
    received_at: datetime


class FrameRepository:
    """Frames of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def has_batch(self, run_id: str, attempt: int, sequence: int) -> bool:
        """Tell whether a batch has been stored."""
        return self._session.get(BatchRow, (run_id, attempt, sequence)) is not None

    def add_batch(self, batch: StoredBatch, blocks: Sequence[FrameBlock]) -> None:
        """Store a batch; a batch of this name must not be there yet."""
        self._session.add(
            BatchRow(
                run_id=batch.run_id,
                attempt=batch.attempt,
                sequence=batch.sequence,
                version=batch.version,
                evaluated=batch.evaluated,
                num_frames=sum(len(block) for block in blocks),
                received_at=batch.received_at,
            )
        )
        self._session.flush()
        rows = [
            {
                "run_id": batch.run_id,
                "attempt": batch.attempt,
                "sequence": batch.sequence,
                "block": index,
                **_encode(block),
            }
            for index, block in enumerate(blocks)
            if len(block)
        ]
        if rows:
            self._session.execute(insert(FrameRow), rows)

    def read(
        self, run_id: str, catalog_id: str, attempt: int | None, steps: tuple[int, int | None]
    ) -> Iterator[tuple[int, FrameBlock]]:
        """Read frames of a catalog as (attempt, block), by attempt and order of arrival.

        Args:
            run_id: The run.
            catalog_id: One of its catalogs.
            attempt: None for every attempt.
            steps: First and last step, both included; None for no end. Blocks that only touch the
                range are given whole.
        """
        query = (
            select(FrameRow, CatalogRow.num_series)
            .join(CatalogRow, CatalogRow.id == FrameRow.catalog_id)
            .where(
                FrameRow.run_id == run_id,
                FrameRow.catalog_id == catalog_id,
                FrameRow.last_step >= steps[0],
            )
            .order_by(FrameRow.attempt, FrameRow.sequence, FrameRow.block)
        )
        if steps[1] is not None:
            query = query.where(FrameRow.first_step <= steps[1])
        if attempt is not None:
            query = query.where(FrameRow.attempt == attempt)
        for row, width in self._session.execute(query.execution_options(yield_per=500)):
            yield row.attempt, _decode(row, width)

    def evaluated_after(
        self, run_id: str, version: int
    ) -> Iterator[tuple[StoredBatch, list[FrameBlock]]]:
        """Read the batches that the rules saw after a version, in the order of arrival."""
        query = (
            select(BatchRow)
            .where(
                BatchRow.run_id == run_id,
                BatchRow.version > version,
                BatchRow.evaluated.is_(True),
            )
            .order_by(BatchRow.version)
        )
        for row in self._session.scalars(query):
            batch = StoredBatch(
                run_id=row.run_id,
                attempt=row.attempt,
                sequence=row.sequence,
                version=row.version,
                evaluated=row.evaluated,
                received_at=row.received_at,
            )
            yield batch, self._blocks(batch)

    def _blocks(self, batch: StoredBatch) -> list[FrameBlock]:
        query = (
            select(FrameRow, CatalogRow.num_series)
            .join(CatalogRow, CatalogRow.id == FrameRow.catalog_id)
            .where(
                FrameRow.run_id == batch.run_id,
                FrameRow.attempt == batch.attempt,
                FrameRow.sequence == batch.sequence,
            )
            .order_by(FrameRow.block)
        )
        return [_decode(row, width) for row, width in self._session.execute(query)]


def _encode(block: FrameBlock) -> dict[str, object]:
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


def _decode(row: FrameRow, width: int) -> FrameBlock:
    if row.codec != RAW:
        raise StorageError(f"frames with codec {row.codec} cannot be read by this version")
    present = None
    if row.present is not None:
        packed = np.frombuffer(row.present, np.uint8).reshape(row.num_frames, -1)
        present = np.unpackbits(packed, axis=1, bitorder="little", count=width).astype(np.bool_)
    return FrameBlock(
        catalog=row.catalog_id,
        steps=np.frombuffer(row.steps, "<i8"),
        times=np.frombuffer(row.times, "<f8"),
        values=np.frombuffer(row.values, "<f4").reshape(row.num_frames, width),
        present=present,
    )
