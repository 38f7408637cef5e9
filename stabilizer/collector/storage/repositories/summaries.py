"""Queries over many runs: one for all of them, never one for each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy import func, select

from stabilizer.collector.storage.engine import Repository
from stabilizer.collector.storage.models import (
    AttemptRow,
    CommandRow,
    IncidentRow,
    MarkerRow,
    RuleStatusRow,
    RunRow,
)
from stabilizer.collector.storage.repositories.decisions import to_command
from stabilizer.protocol.batches import MarkerKind
from stabilizer.protocol.commands import Command, CommandKind, CommandState
from stabilizer.protocol.decisions import IncidentState
from stabilizer.protocol.runs import Attempt, Branch, RunState
from stabilizer.protocol.views import IncidentHead


class SummaryRepository(Repository):
    """Summaries of one session; runs without a value are absent."""

    def attempts(self, run_ids: Sequence[str]) -> Mapping[str, list[Attempt]]:
        """Return the attempts of runs, first to last."""
        query = (
            select(AttemptRow)
            .where(AttemptRow.run_id.in_(run_ids))
            .order_by(AttemptRow.run_id, AttemptRow.number)
        )
        found: dict[str, list[Attempt]] = defaultdict(list)
        for row in self._session.scalars(query):
            found[row.run_id].append(Attempt.model_validate(row, from_attributes=True))
        return found

    def open_incidents(self, run_ids: Sequence[str]) -> dict[str, IncidentHead]:
        """Return the newest unresolved incident of each run."""
        query = (
            select(IncidentRow)
            .where(
                IncidentRow.run_id.in_(run_ids),
                IncidentRow.state != IncidentState.RESOLVED.value,
            )
            .order_by(IncidentRow.number)
        )
        return {
            row.run_id: IncidentHead.model_validate(row, from_attributes=True)
            for row in self._session.scalars(query)
        }

    def last_applied(self, run_ids: Sequence[str]) -> dict[str, Command]:
        """Return the command that each run's job applied last."""
        place = func.row_number().over(
            partition_by=CommandRow.run_id,
            order_by=(CommandRow.settled_at.desc(), CommandRow.number.desc()),
        )
        ranked = (
            select(CommandRow.id, place.label("place"))
            .where(CommandRow.run_id.in_(run_ids), CommandRow.state == CommandState.APPLIED.value)
            .subquery()
        )
        query = (
            select(CommandRow).join(ranked, ranked.c.id == CommandRow.id).where(ranked.c.place == 1)
        )
        return {row.run_id: to_command(row) for row in self._session.scalars(query)}

    def num_proposed(self, run_ids: Sequence[str]) -> dict[str, int]:
        """Count the proposed commands of each run."""
        query = (
            select(CommandRow.run_id, func.count())
            .where(CommandRow.run_id.in_(run_ids), CommandRow.state == CommandState.PROPOSED.value)
            .group_by(CommandRow.run_id)
        )
        return dict(self._session.execute(query).all())

    def phases(
        self, run_ids: Sequence[str], branches: Mapping[str, Sequence[Branch]]
    ) -> dict[str, str]:
        """Return the text of each run's newest phase change in the live lineage."""
        query = (
            select(MarkerRow.run_id, MarkerRow.attempt, MarkerRow.step, MarkerRow.text)
            .where(MarkerRow.run_id.in_(run_ids), MarkerRow.kind == MarkerKind.PHASE_CHANGE.value)
            .order_by(MarkerRow.step, MarkerRow.id)
        )
        return {  # the newest phase of a run comes last
            run_id: text
            for run_id, attempt, step, text in self._session.execute(query)
            if any(one.attempt == attempt and one.is_live(step) for one in branches[run_id])
        }


class CountRepository(Repository):
    """Counts over all runs, one query each."""

    def runs(self) -> dict[RunState, int]:
        """Count runs by state; states without runs are absent."""
        query = select(RunRow.state, func.count()).group_by(RunRow.state)
        return {RunState(state): count for state, count in self._session.execute(query)}

    def risks(self) -> dict[tuple[str, str], float]:
        """Return the risk of running jobs, by id and name of the run."""
        query = select(RunRow.id, RunRow.name, RuleStatusRow.risk).join(
            RuleStatusRow, RuleStatusRow.run_id == RunRow.id
        )
        rows = self._session.execute(query.where(RunRow.state == RunState.RUNNING.value))
        return {(run, name): risk["probability"] for run, name, risk in rows if risk is not None}

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
