"""Rule sets and the states of the rules."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Session

from stabilizer.collector.storage.models import BrainStateRow, RuleSetRow
from stabilizer.collector.storage.repositories.insert import insert_unless_present
from stabilizer.errors import StorageError


class RuleRepository:
    """Rule sets and brain states of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add_set(self, content_hash: str, text: str, now: datetime) -> None:
        """Store a rule file unless it is there."""
        row = {"hash": content_hash, "text": text, "created_at": now}
        insert_unless_present(self._session, RuleSetRow, [row])

    def text(self, content_hash: str) -> str:
        """Return the text of a stored rule file.

        Raises:
            StorageError: It is not there, although something refers to it.
        """
        row = self._session.get(RuleSetRow, content_hash)
        if row is None:
            raise StorageError(f"rule set {content_hash} is gone from the database")
        return row.text

    def state(self, run_id: str) -> BrainStateRow | None:
        """Return the last saved state of a run's rules."""
        return self._session.get(BrainStateRow, run_id)

    def add_state(self, row: BrainStateRow) -> None:
        """Store the first state of a run's rules."""
        self._session.add(row)
