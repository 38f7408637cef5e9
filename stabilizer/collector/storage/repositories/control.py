"""The global disarm and silences."""

from __future__ import annotations

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from stabilizer.collector.storage.models import ControlRow, SilenceRow
from stabilizer.errors import NotFoundError
from stabilizer.protocol.queries import Silence


class ControlRepository:
    """Control and silences of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self) -> ControlRow | None:
        """Return the switch; None if it was never touched."""
        return self._session.get(ControlRow, 1)

    def put(self, row: ControlRow) -> None:
        """Store the switch."""
        self._session.merge(row)

    def silences(self, run_id: str | None = None) -> list[SilenceRow]:
        """Return all silences, or those that can touch a run, oldest first."""
        query = select(SilenceRow).order_by(SilenceRow.created_at, SilenceRow.id)
        if run_id is not None:
            query = query.where(or_(SilenceRow.run_id.is_(None), SilenceRow.run_id == run_id))
        return list(self._session.scalars(query))

    def require_silence(self, silence_id: str) -> SilenceRow:
        """Return a silence.

        Raises:
            NotFoundError: There is none; code `unknown_silence`.
        """
        row = self._session.get(SilenceRow, silence_id)
        if row is None:
            raise NotFoundError(f"there is no silence {silence_id!r}", code="unknown_silence")
        return row

    def add_silence(self, row: SilenceRow) -> None:
        """Store a silence."""
        self._session.add(row)

    def remove_silence(self, row: SilenceRow) -> None:
        """Remove a silence; the audit log remembers it."""
        self._session.delete(row)


def to_silence(row: SilenceRow) -> Silence:
    """Show a silence."""
    return Silence.model_validate({name: getattr(row, name) for name in Silence.model_fields})
