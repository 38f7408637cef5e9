"""Attempts of a run, and what the job says about itself: markers and snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from stabilizer.collector.storage.models import AttemptRow, MarkerRow, SnapshotRow
from stabilizer.protocol.batches import Marker, SnapshotInfo
from stabilizer.protocol.runs import Attempt
from stabilizer.protocol.views import MarkerInfo


class AttemptRepository:
    """Attempts, markers and snapshots of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, run_id: str, number: int) -> AttemptRow | None:
        """Return an attempt, or None."""
        return self._session.get(AttemptRow, (run_id, number))

    def add(self, row: AttemptRow) -> None:
        """Store a new attempt."""
        self._session.add(row)
        self._session.flush()

    def of_run(self, run_id: str) -> list[Attempt]:
        """Return all attempts of a run, first to last."""
        query = select(AttemptRow).where(AttemptRow.run_id == run_id).order_by(AttemptRow.number)
        return [
            Attempt.model_validate({name: getattr(row, name) for name in Attempt.model_fields})
            for row in self._session.scalars(query)
        ]

    def add_markers(
        self, run_id: str, attempt: int, markers: Sequence[Marker], at: datetime
    ) -> None:
        """Store events of the job."""
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
        """Return all events of a run, oldest first."""
        query = select(MarkerRow).where(MarkerRow.run_id == run_id).order_by(MarkerRow.id)
        return [
            MarkerInfo.model_validate(
                {name: getattr(row, name) for name in MarkerInfo.model_fields}
            )
            for row in self._session.scalars(query)
        ]

    def snapshots(self, run_id: str) -> list[SnapshotInfo]:
        """Return the inventory as the job gave it."""
        query = (
            select(SnapshotRow).where(SnapshotRow.run_id == run_id).order_by(SnapshotRow.position)
        )
        return [
            SnapshotInfo.model_validate(
                {name: getattr(row, name) for name in SnapshotInfo.model_fields}
            )
            for row in self._session.scalars(query)
        ]

    def replace_snapshots(self, run_id: str, snapshots: Sequence[SnapshotInfo]) -> None:
        """Store the whole inventory in place of the one before."""
        self._session.execute(delete(SnapshotRow).where(SnapshotRow.run_id == run_id))
        rows = [
            {"run_id": run_id, "position": position, **snapshot.model_dump()}
            for position, snapshot in enumerate(snapshots)
        ]
        if rows:
            self._session.execute(insert(SnapshotRow), rows)
