"""The journal of frames: stored as received, read by run, attempt, catalog and step.

Readers get `FrameBlock`s; `blocks` encodes them in rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sqlalchemy import BigInteger, Select, and_, column, func, insert, select, values

from stabilizer.collector.storage.column_types import Id
from stabilizer.collector.storage.engine import Repository
from stabilizer.collector.storage.models import BatchRow, CatalogRow, FrameRow
from stabilizer.collector.storage.repositories.blocks import decode, decode_steps, encode, merge
from stabilizer.protocol.frames import FrameBlock

_ROWS_AT_ONCE: Final = 128
"""A row may hold hundreds of frames of thousands of series."""
_STEPS: Final = (
    FrameRow.attempt,
    FrameRow.codec,
    FrameRow.num_frames,
    FrameRow.steps,
    FrameRow.present,
)
_FRAMES: Final = (*_STEPS, FrameRow.times, FrameRow.values)


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch in the journal."""

    run_id: str
    attempt: int
    sequence: int
    version: int
    """The run's version after it: the order of arrival."""
    evaluated: bool
    received_at: datetime


class FrameRepository(Repository):
    """Frames of one session."""

    def has_batch(self, run_id: str, attempt: int, sequence: int) -> bool:
        """Return whether a batch is stored."""
        return self._session.get(BatchRow, (run_id, attempt, sequence)) is not None

    def add_batch(self, batch: StoredBatch, blocks: Sequence[FrameBlock]) -> None:
        """Store a batch that is not stored yet."""
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
                **encode(block),
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
            steps: First and last step, inclusive; None for no end. Batches that overlap the range
                are returned whole.
        """
        query = _within(select(*_FRAMES), run_id, catalog_id, attempt, steps)
        return merge(self._rows(query), catalog_id, self._width(catalog_id))

    def measured_steps(
        self,
        run_id: str,
        catalog_id: str,
        slots: Sequence[int],
        *,
        attempt: int | None = None,
        steps: tuple[int, int | None] = (0, None),
    ) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """Read the steps at which any of the series was measured, as (attempt, steps).

        Much cheaper than `read`, since it loads no values.

        Args:
            run_id: The run.
            catalog_id: One of its catalogs.
            slots: Slots of the series in the catalog.
            attempt: None for every attempt.
            steps: As in `read`.
        """
        width = self._width(catalog_id)
        query = _within(select(*_STEPS), run_id, catalog_id, attempt, steps)
        for row in self._rows(query):
            yield row.attempt, decode_steps(row, width, slots)

    def newest(self, run_id: str, catalog_id: str, limit: int) -> list[tuple[int, FrameBlock]]:
        """Read the newest batches with frames of a catalog as (attempt, block), newest first."""
        query = (
            select(*_FRAMES)
            .where(FrameRow.run_id == run_id, FrameRow.catalog_id == catalog_id)
            .order_by(FrameRow.attempt.desc(), FrameRow.first_step.desc())
            .limit(limit)
        )
        width = self._width(catalog_id)
        return [(row.attempt, decode([row], catalog_id, width)) for row in self._rows(query)]

    def arrived(
        self, since: Mapping[str, int], catalog_ids: Collection[str]
    ) -> Iterator[tuple[str, int, FrameBlock]]:
        """Read what many runs received after a version of each, as (run, attempt, block).

        Args:
            since: Run id to version.
            catalog_ids: Only frames of these.
        """
        if not since:
            return
        widths = self._widths(catalog_ids)
        wanted = (
            values(column("run_id", Id()), column("version", BigInteger()), name="wanted")
            .data(list(since.items()))
            .cte("wanted")
        )
        query = (
            _arrivals(catalog_ids)
            .join(wanted, wanted.c.run_id == BatchRow.run_id)
            .where(BatchRow.version > wanted.c.version)
        )
        for rows in _chunks(self._rows(query)):
            yield from _grouped(rows, widths)

    def history(
        self, run_id: str, version: int, catalog_ids: Collection[str]
    ) -> Iterator[tuple[int, list[tuple[int, FrameBlock]]]]:
        """Read what a run received after a version, in chunks and in order of arrival.

        Args:
            run_id: The run.
            version: Version of the run; earlier batches are skipped.
            catalog_ids: Only frames of these.

        Yields:
            The version up to which frames were yielded, and (attempt, block) pairs of a chunk.
        """
        widths = self._widths(catalog_ids)
        query = (
            _arrivals(catalog_ids)
            .where(BatchRow.run_id == run_id, BatchRow.version > version)
            .order_by(BatchRow.version)
        )
        for rows in _chunks(self._rows(query)):
            yield (
                rows[-1].version,
                [(attempt, block) for _, attempt, block in _grouped(rows, widths)],
            )

    def _rows(self, query: Select[*tuple[Any, ...]]) -> Iterator[Any]:
        # Plain rows, no ORM objects: a long run has as many rows as batches.
        found = self._session.execute(query.execution_options(yield_per=_ROWS_AT_ONCE))
        with found:  # close the cursor if the reader stops early
            yield from found

    def _width(self, catalog_id: str) -> int:
        return self._widths([catalog_id]).get(catalog_id, 0)

    def _widths(self, catalog_ids: Collection[str]) -> dict[str, int]:
        query = select(CatalogRow.id, CatalogRow.num_series).where(CatalogRow.id.in_(catalog_ids))
        return dict(self._session.execute(query).all())

    def evaluated_after(
        self, run_id: str, version: int
    ) -> Iterator[tuple[StoredBatch, list[FrameBlock]]]:
        """Read the batches that the rules processed after a version, in order of arrival."""
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
        rows = self._session.execute(query)
        return [decode([row], row.catalog_id, width) for row, width in rows]


def _arrivals(catalog_ids: Collection[str]) -> Select[*tuple[Any, ...]]:
    # Find frames by the key of their batch. `coalesce` hides the catalog from SQLite, which
    # would otherwise use the index on run and catalog and scan all frames for each batch.
    catalog_id = func.coalesce(FrameRow.catalog_id, "")
    return (
        select(*_FRAMES, FrameRow.run_id, FrameRow.catalog_id, BatchRow.version)
        .select_from(BatchRow)
        .join(
            FrameRow,
            and_(
                FrameRow.run_id == BatchRow.run_id,
                FrameRow.attempt == BatchRow.attempt,
                FrameRow.sequence == BatchRow.sequence,
            ),
        )
        .where(catalog_id.in_(catalog_ids))
    )


def _chunks(rows: Iterator[Any]) -> Iterator[list[Any]]:
    while chunk := list(islice(rows, _ROWS_AT_ONCE)):
        yield chunk


def _grouped(
    rows: Sequence[Any], widths: Mapping[str, int]
) -> Iterator[tuple[str, int, FrameBlock]]:
    """Merge rows of the same run, catalog and attempt into (run, attempt, block)."""
    groups: dict[tuple[str, str, int], list[Any]] = {}
    for row in rows:
        groups.setdefault((row.run_id, row.catalog_id, row.attempt), []).append(row)
    for (run_id, catalog_id, attempt), group in groups.items():
        yield run_id, attempt, decode(group, catalog_id, widths[catalog_id])


def _within(
    query: Select[*tuple[Any, ...]],
    run_id: str,
    catalog_id: str,
    attempt: int | None,
    steps: tuple[int, int | None],
) -> Select[*tuple[Any, ...]]:
    query = query.where(
        FrameRow.run_id == run_id,
        FrameRow.catalog_id == catalog_id,
        FrameRow.last_step >= steps[0],
    )
    if steps[1] is not None:
        query = query.where(FrameRow.first_step <= steps[1])
    if attempt is not None:
        query = query.where(FrameRow.attempt == attempt)
    return query.order_by(FrameRow.attempt, FrameRow.sequence, FrameRow.block)
