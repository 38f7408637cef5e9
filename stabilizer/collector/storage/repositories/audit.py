"""The append-only log. There is no way to change or delete a row, here or in the database."""

from __future__ import annotations

from typing import Final

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from stabilizer.collector.storage.models import AuditRow
from stabilizer.protocol.queries import AuditEntry, AuditPage

_WRITERS_LOCK: Final = 0x57AB1
"""Advisory lock of PostgreSQL; any number that nobody else uses."""


class AuditRepository:
    """Audit rows of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ordered = session.get_bind().dialect.name != "postgresql"

    def add(self, row: AuditRow) -> None:
        """Append a row.

        On PostgreSQL one transaction appends at a time: else a lower id could become visible after
        a higher one, and a reader who pages by id would never see it.
        """
        if not self._ordered:
            self._session.execute(
                text("SELECT pg_advisory_xact_lock(:number)"), {"number": _WRITERS_LOCK}
            )
            self._ordered = True
        self._session.add(row)
        self._session.flush()

    def knows(self, run_id: str) -> bool:
        """Tell whether anything is written about a run."""
        query = select(AuditRow.id).where(AuditRow.run_id == run_id).limit(1)
        return self._session.scalar(query) is not None

    def page(self, run_id: str | None, after: int, limit: int) -> AuditPage:
        """Return the rows behind `after`, oldest first; no run for all of them."""
        query = select(AuditRow).where(AuditRow.id > after).order_by(AuditRow.id)
        if run_id is not None:
            query = query.where(AuditRow.run_id == run_id)
        rows = list(self._session.scalars(query.limit(limit + 1)))
        entries = tuple(
            AuditEntry.model_validate(
                {name: getattr(row, name) for name in AuditEntry.model_fields}
            )
            for row in rows[:limit]
        )
        more = len(rows) > limit
        return AuditPage(entries=entries, next_after=entries[-1].id if more else None)
