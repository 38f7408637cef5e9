"""The journal of frames: stored as they came, read by run, attempt, catalog and step.

Whoever reads gets `FrameBlock`s, whatever the layout: how they lie in a row, `blocks` knows.
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
from sqlalchemy.orm import Session

from stabilizer.collector.storage.column_types import Id
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
            steps: First and last step, both included; None for no end. Batches that only touch the
                range are given whole.
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
        """Read as (attempt, steps) when any of some series was measured, by order of arrival.

        Costs a fraction of `read`, since values stay where they are.

        Args:
            run_id: The run.
            catalog_id: One of its catalogs.
            slots: Places of the series in the catalog.
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
        """Read what came to many runs after a version of each, as (run, attempt, block).

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
        """Read what came to a run after a version, in pieces and in the order of arrival.

        Args:
            run_id: The run.
            version: Of the run; what came up to it is left out.
            catalog_ids: Only frames of these.

        Yields:
            The version up to which frames have been given, and (attempt, block) of a piece.
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
        # Rows without objects around them: a long run has as many rows as batches.
        found = self._session.execute(query.execution_options(yield_per=_ROWS_AT_ONCE))
        with found:  # who stops half way leaves no cursor open
            yield from found

    def _width(self, catalog_id: str) -> int:
        return self._widths([catalog_id]).get(catalog_id, 0)

    def _widths(self, catalog_ids: Collection[str]) -> dict[str, int]:
        query = select(CatalogRow.id, CatalogRow.num_series).where(CatalogRow.id.in_(catalog_ids))
        return dict(self._session.execute(query).all())

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
        rows = self._session.execute(query)
        return [decode([row], row.catalog_id, width) for row, width in rows]


def _arrivals(catalog_ids: Collection[str]) -> Select[*tuple[Any, ...]]:
    # Each batch finds its frames by their key. Were the catalog named plainly, SQLite would take
    # the index that begins with run and catalog, and look through all frames for each batch.
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
    """Put rows of the same run, catalog and attempt together, as (run, attempt, block)."""
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
