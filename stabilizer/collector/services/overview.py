"""The state of all runs, for lists and metrics scrapers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stabilizer.collector.services.unit_of_work import UnitOfWork
from stabilizer.collector.services.views.sparklines import Sparklines
from stabilizer.collector.storage.models import RunRow
from stabilizer.collector.storage.repositories import Repositories
from stabilizer.collector.storage.repositories.runs import to_run
from stabilizer.collector.storage.repositories.summaries import CountRepository, SummaryRepository
from stabilizer.protocol.commands import CommandKind, CommandState
from stabilizer.protocol.decisions import IncidentState
from stabilizer.protocol.queries import RunQuery
from stabilizer.protocol.runs import RunState, trace_lineage
from stabilizer.protocol.views import Overview, RunSummary


@dataclass(frozen=True, slots=True)
class StateCounts:
    """Counts by state; states that count zero are absent."""

    runs: Mapping[RunState, int]
    incidents: Mapping[IncidentState, int]
    commands: Mapping[tuple[CommandKind, CommandState], int]
    broken_rules: int
    """Rules whose last evaluation failed, over the runs in this collector's memory."""
    risks: Mapping[tuple[str, str], float]
    """The risk of running jobs, by id and name of the run."""


class OverviewService:
    """Summaries over all runs. Each call takes a fixed number of queries."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._sparklines = Sparklines(uow.clock)

    def rows(self, query: RunQuery) -> Overview:
        """Return a page of runs with their summaries.

        Raises:
            InvalidInputError: The cursor is invalid.
        """
        with self._uow.reading() as repos:
            runs, total, next_cursor = repos.runs.page(query)
            return Overview(rows=self._summaries(repos, runs), total=total, next_cursor=next_cursor)

    def _summaries(self, repos: Repositories, runs: Sequence[RunRow]) -> tuple[RunSummary, ...]:
        ids = [run.id for run in runs]
        summaries = SummaryRepository(repos.session)
        attempts = summaries.attempts(ids)
        branches = {run_id: trace_lineage(attempts.get(run_id, ())) for run_id in ids}
        incidents = summaries.open_incidents(ids)
        applied = summaries.last_applied(ids)
        proposed = summaries.num_proposed(ids)
        phases = summaries.phases(ids, branches)
        sparklines = self._sparklines.of_runs(repos, runs, branches)
        return tuple(
            RunSummary(
                run=to_run(run, (), incidents[run.id].id if run.id in incidents else None),
                phase=phases.get(run.id),
                incident=incidents.get(run.id),
                last_intervention=applied.get(run.id),
                num_proposed=proposed.get(run.id, 0),
                sparkline=sparklines.get(run.id),
            )
            for run in runs
        )

    def counts(self) -> StateCounts:
        """Count runs, incidents and commands by state.

        Raises:
            StorageError: The database does not answer.
        """
        with self._uow.reading() as repos:
            counts = CountRepository(repos.session)
            return StateCounts(
                runs=counts.runs(),
                incidents=counts.incidents(),
                commands=counts.commands(),
                broken_rules=self._uow.judge.num_broken_rules(),
                risks=counts.risks(),
            )
