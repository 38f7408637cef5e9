"""The global switch, silences, and the audit log.

The log is append-only: no code changes or deletes a row, and the database refuses to.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import or_, select, text
from sqlalchemy.orm import Session

from stabilizer.collector.storage.engine import Repository
from stabilizer.collector.storage.models import AuditRow, ControlRow, SilenceRow
from stabilizer.errors import NotFoundError
from stabilizer.protocol.queries import AuditEntry, AuditPage, Silence

_WRITERS_LOCK: Final = 0x57AB1
"""Key of an advisory lock of PostgreSQL; arbitrary."""


class ControlRepository(Repository):
    """Control and silences of one session."""

    def get(self) -> ControlRow | None:
        """Return the switch; None if it was never set."""
        return self._session.get(ControlRow, 1)

    def put(self, row: ControlRow) -> None:
        """Store the switch."""
        self._session.merge(row)

    def silences(self, run_id: str | None = None) -> list[SilenceRow]:
        """Return all silences, or those that apply to a run, oldest first."""
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
        """Remove a silence; the audit log keeps it."""
        self._session.delete(row)


def to_silence(row: SilenceRow) -> Silence:
    """Convert a row to a message."""
    return Silence.model_validate(row, from_attributes=True)


class AuditRepository(Repository):
    """Audit rows of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ordered = session.get_bind().dialect.name != "postgresql"

    def add(self, row: AuditRow) -> None:
        """Append a row.

        On PostgreSQL one transaction appends at a time. Otherwise a lower id could become visible
        after a higher one, and a reader that pages by id would miss it.
        """
        if not self._ordered:
            self._session.execute(
                text("SELECT pg_advisory_xact_lock(:number)"), {"number": _WRITERS_LOCK}
            )
            self._ordered = True
        self._session.add(row)
        self._session.flush()

    def knows(self, run_id: str) -> bool:
        """Return whether a run has entries."""
        query = select(AuditRow.id).where(AuditRow.run_id == run_id).limit(1)
        return self._session.scalar(query) is not None

    def page(self, run_id: str | None, after: int, limit: int) -> AuditPage:
        """Return the entries after id `after`, oldest first, of one run or of all."""
        query = select(AuditRow).where(AuditRow.id > after).order_by(AuditRow.id)
        if run_id is not None:
            query = query.where(AuditRow.run_id == run_id)
        rows = list(self._session.scalars(query.limit(limit + 1)))
        entries = tuple(
            AuditEntry.model_validate(row, from_attributes=True) for row in rows[:limit]
        )
        more = len(rows) > limit
        return AuditPage(entries=entries, next_after=entries[-1].id if more else None)
