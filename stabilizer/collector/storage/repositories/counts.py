"""How many there are of what, over all runs."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from stabilizer.collector.storage.models import CommandRow, IncidentRow, RunRow
from stabilizer.protocol.commands import CommandKind, CommandState
from stabilizer.protocol.decisions import IncidentState
from stabilizer.protocol.runs import RunState


class CountRepository:
    """Counts of one session. Each is one query, whatever the number of runs."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def runs(self) -> dict[RunState, int]:
        """Count runs by state; states without runs are left out."""
        query = select(RunRow.state, func.count()).group_by(RunRow.state)
        return {RunState(state): count for state, count in self._session.execute(query)}

    def incidents(self) -> dict[IncidentState, int]:
        """Count incidents by state."""
        query = select(IncidentRow.state, func.count()).group_by(IncidentRow.state)
        rows = self._session.execute(query)
        return {IncidentState(state): count for state, count in rows}

    def commands(self) -> dict[tuple[CommandKind, CommandState], int]:
        """Count commands by kind and state."""
        query = select(CommandRow.kind, CommandRow.state, func.count())
        rows = self._session.execute(query.group_by(CommandRow.kind, CommandRow.state))
        return {(CommandKind(kind), CommandState(state)): count for kind, state, count in rows}
