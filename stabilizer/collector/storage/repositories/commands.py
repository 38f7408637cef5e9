"""Commands."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from stabilizer.collector.storage.models import CommandRow
from stabilizer.errors import NotFoundError
from stabilizer.protocol.commands import SETTLED_STATES, Command, CommandState

UNSETTLED = tuple(state for state in CommandState if state not in SETTLED_STATES)


class CommandRepository:
    """Commands of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def require(self, command_id: str) -> CommandRow:
        """Return a command.

        Raises:
            NotFoundError: There is none; code `unknown_command`.
        """
        row = self._session.get(CommandRow, command_id)
        if row is None:
            raise NotFoundError(f"there is no command {command_id!r}", code="unknown_command")
        return row

    def find(self, run_id: str, key: str) -> CommandRow | None:
        """Return the command of a key."""
        query = select(CommandRow).where(CommandRow.run_id == run_id, CommandRow.key == key)
        return self._session.scalar(query)

    def add(self, row: CommandRow) -> None:
        """Store a new command."""
        self._session.add(row)
        self._session.flush()

    def next_number(self, run_id: str) -> int:
        """Return the number of the run's next command."""
        query = select(func.max(CommandRow.number)).where(CommandRow.run_id == run_id)
        return (self._session.scalar(query) or 0) + 1

    def of_run(self, run_id: str, states: Collection[CommandState] = ()) -> list[CommandRow]:
        """Return commands of a run in the order in which they were issued; no states: all."""
        query = select(CommandRow).where(CommandRow.run_id == run_id)
        if states:
            query = query.where(CommandRow.state.in_([state.value for state in states]))
        return list(self._session.scalars(query.order_by(CommandRow.number)))

    def runs_with_due(self, now: datetime) -> list[str]:
        """Return the runs that have an unsettled command whose time has passed."""
        query = (
            select(CommandRow.run_id)
            .where(
                CommandRow.state.in_([state.value for state in UNSETTLED]),
                CommandRow.expires_at <= now,
            )
            .distinct()
        )
        return sorted(self._session.scalars(query))


def to_command(row: CommandRow) -> Command:
    """Show a command."""
    return Command.model_validate({name: getattr(row, name) for name in Command.model_fields})
