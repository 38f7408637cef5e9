"""Runs with their attempts, markers and snapshots."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, delete, func, insert, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute

from stabilizer.collector.storage.engine import Repository
from stabilizer.collector.storage.models import AttemptRow, MarkerRow, RunRow, SnapshotRow
from stabilizer.errors import InvalidInputError, NotFoundError
from stabilizer.protocol.batches import Marker, SnapshotInfo
from stabilizer.protocol.queries import RunQuery, RunSort
from stabilizer.protocol.runs import Attempt, Run, RunState
from stabilizer.protocol.views import MarkerInfo

_SORT: Final[
    dict[
        RunSort,
        InstrumentedAttribute[datetime] | InstrumentedAttribute[str] | InstrumentedAttribute[int],
    ]
] = {
    RunSort.CREATED_AT: RunRow.created_at,
    RunSort.LAST_SEEN_AT: RunRow.last_seen_at,
    RunSort.NAME: RunRow.name,
    RunSort.STEP: RunRow.step,
}


class RunRepository(Repository):
    """Runs of one session."""

    def get(self, run_id: str) -> RunRow | None:
        """Return a run, or None."""
        return self._session.get(RunRow, run_id)

    def require(self, run_id: str) -> RunRow:
        """Return a run.

        Raises:
            NotFoundError: There is none; code `unknown_run`.
        """
        return _found(self._session.get(RunRow, run_id), run_id)

    def lock(self, run_id: str) -> RunRow:
        """Return a run and block its other writers until the transaction ends.

        SQLite has one writer at a time anyway and ignores `FOR UPDATE`.

        Raises:
            NotFoundError: There is none; code `unknown_run`.
        """
        query = select(RunRow).where(RunRow.id == run_id).with_for_update()
        return _found(self._session.scalar(query), run_id)

    def find(self, name: str, key: str) -> RunRow | None:
        """Return the run of a name and key."""
        query = select(RunRow).where(RunRow.name == name, RunRow.key == key)
        return self._session.scalar(query)

    def keyless(self, name: str) -> list[RunRow]:
        """Return the runs of a name whose jobs gave no key, last seen first."""
        query = select(RunRow).where(RunRow.name == name, RunRow.keyless)
        return list(self._session.scalars(query.order_by(RunRow.last_seen_at.desc(), RunRow.id)))

    def add(self, row: RunRow) -> None:
        """Store a new run."""
        self._session.add(row)
        self._session.flush()

    def ids(self, states: Collection[RunState]) -> list[str]:
        """Return the ids of all runs in one of these states."""
        query = select(RunRow.id).where(RunRow.state.in_([state.value for state in states]))
        return list(self._session.scalars(query.order_by(RunRow.id)))

    def delete(self, run_id: str) -> None:
        """Delete a run with everything that belongs to it except its audit entries."""
        self._session.execute(delete(RunRow).where(RunRow.id == run_id))

    def page(self, query: RunQuery) -> tuple[list[RunRow], int, str | None]:
        """Return the runs of a page, the total over all pages, and the next cursor.

        Raises:
            InvalidInputError: The cursor is malformed or belongs to another order.
        """
        taken = select(RunRow)
        if query.states:
            taken = taken.where(RunRow.state.in_([state.value for state in query.states]))
        if query.name:
            taken = taken.where(_is_called(query.name.lower()))
        total = self._session.scalar(select(func.count()).select_from(taken.subquery())) or 0
        rows = list(self._session.scalars(_ordered(taken, query).limit(query.limit + 1)))
        if len(rows) <= query.limit:
            return rows, total, None
        return rows[: query.limit], total, _write_cursor(query, rows[query.limit - 1])


class AttemptRepository(Repository):
    """Attempts, markers and snapshots of one session."""

    def get(self, run_id: str, number: int) -> AttemptRow | None:
        """Return an attempt, or None."""
        return self._session.get(AttemptRow, (run_id, number))

    def by_id(self, run_id: str, attempt_id: str) -> AttemptRow | None:
        """Return the attempt that a job named so, or None."""
        query = select(AttemptRow).where(
            AttemptRow.run_id == run_id, AttemptRow.attempt_id == attempt_id
        )
        return self._session.scalar(query)

    def run_of(self, attempt_id: str) -> str | None:
        """Return the run that has an attempt of this id, or None."""
        return self._session.scalar(
            select(AttemptRow.run_id).where(AttemptRow.attempt_id == attempt_id).limit(1)
        )

    def next_number(self, run_id: str) -> int:
        """Return the number of the next attempt to arrive."""
        query = select(func.max(AttemptRow.number)).where(AttemptRow.run_id == run_id)
        return (self._session.scalar(query) or 0) + 1

    def adopt(self, row: AttemptRow) -> None:
        """Number the parent of attempts that named this one before it arrived."""
        self._session.execute(
            update(AttemptRow)
            .where(AttemptRow.run_id == row.run_id, AttemptRow.parent_id == row.attempt_id)
            .values(parent=row.number)
        )

    def add(self, row: AttemptRow) -> None:
        """Store a new attempt."""
        self._session.add(row)
        self._session.flush()

    def of_run(self, run_id: str) -> list[Attempt]:
        """Return all attempts of a run, first to last."""
        query = select(AttemptRow).where(AttemptRow.run_id == run_id).order_by(AttemptRow.number)
        return [
            Attempt.model_validate(row, from_attributes=True)
            for row in self._session.scalars(query)
        ]

    def add_markers(
        self, run_id: str, attempt: int, markers: Sequence[Marker], at: datetime
    ) -> None:
        """Store markers of the job."""
        self._session.add_all(
            MarkerRow(
                run_id=run_id,
                attempt=attempt,
                step=marker.step,
                kind=marker.kind.value,
                text=marker.text,
                at=at,
            )
            for marker in markers
        )

    def markers(self, run_id: str) -> list[MarkerInfo]:
        """Return all markers of a run, oldest first."""
        query = select(MarkerRow).where(MarkerRow.run_id == run_id).order_by(MarkerRow.id)
        return [
            MarkerInfo.model_validate(row, from_attributes=True)
            for row in self._session.scalars(query)
        ]

    def snapshots(self, run_id: str) -> list[SnapshotInfo]:
        """Return the snapshots in the job's order."""
        query = (
            select(SnapshotRow).where(SnapshotRow.run_id == run_id).order_by(SnapshotRow.position)
        )
        return [
            SnapshotInfo.model_validate(row, from_attributes=True)
            for row in self._session.scalars(query)
        ]

    def replace_snapshots(self, run_id: str, snapshots: Sequence[SnapshotInfo]) -> None:
        """Replace the whole inventory of snapshots."""
        self._session.execute(delete(SnapshotRow).where(SnapshotRow.run_id == run_id))
        rows = [
            {
                "run_id": run_id,
                "position": position,
                **snapshot.model_dump(exclude={"attempt_id"}),
            }
            for position, snapshot in enumerate(snapshots)
        ]
        if rows:
            self._session.execute(insert(SnapshotRow), rows)


def _is_called(text: str) -> ColumnElement[bool]:
    return or_(
        func.lower(RunRow.name).contains(text, autoescape=True),
        func.lower(RunRow.key).contains(text, autoescape=True),
        RunRow.id.startswith(text, autoescape=True),
    )


def _found(row: RunRow | None, run_id: str) -> RunRow:
    if row is None:
        raise NotFoundError(f"there is no run {run_id!r}", code="unknown_run")
    return row


def _ordered(taken: Select[RunRow], query: RunQuery) -> Select[RunRow]:
    column = _SORT[query.sort]
    if query.cursor is not None:
        value, run_id = _read_cursor(query, query.cursor)
        beyond = column < value if query.descending else column > value
        next_id = RunRow.id < run_id if query.descending else RunRow.id > run_id
        taken = taken.where(or_(beyond, and_(column == value, next_id)))
    if query.descending:
        return taken.order_by(column.desc(), RunRow.id.desc())
    return taken.order_by(column, RunRow.id)


def _write_cursor(query: RunQuery, last: RunRow) -> str:
    value = getattr(last, query.sort.value)
    shown = value.isoformat() if isinstance(value, datetime) else value
    text = json.dumps([query.sort.value, query.descending, shown, last.id])
    return base64.urlsafe_b64encode(text.encode()).decode()


def _read_cursor(query: RunQuery, cursor: str) -> tuple[datetime | str | int, str]:
    try:
        return _parse_cursor(query, json.loads(base64.urlsafe_b64decode(cursor.encode())))
    except (ValueError, TypeError) as error:
        raise InvalidInputError(
            f"cursor {cursor!r} is not next_cursor of a page with the same sort and order",
            field="cursor",
            value=cursor,
            allowed="next_cursor of a page with the same sort and order",
        ) from error


def _parse_cursor(query: RunQuery, found: list[Any]) -> tuple[datetime | str | int, str]:
    sort, descending, value, run_id = found
    if (sort, descending) != (query.sort.value, query.descending):
        raise ValueError("it belongs to another order")
    if query.sort in (RunSort.CREATED_AT, RunSort.LAST_SEEN_AT):
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise ValueError("its time has no zone")
        return moment, str(run_id)
    if not isinstance(value, int if query.sort is RunSort.STEP else str):
        raise TypeError("its value has the wrong type")
    return value, str(run_id)


def to_run(row: RunRow, attempts: Sequence[Attempt], open_incident_id: str | None) -> Run:
    """Convert a row to a message."""
    return Run.model_validate(
        {
            name: getattr(row, name)
            for name in Run.model_fields
            if name not in ("attempts", "open_incident_id")
        }
        | {"attempts": tuple(attempts), "open_incident_id": open_incident_id}
    )
