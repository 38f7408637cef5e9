"""The state of all runs at a glance, for scrapers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stabilizer.collector.services.evaluation.judge import Judge
from stabilizer.collector.services.work import Workbench
from stabilizer.collector.storage.repositories.counts import CountRepository
from stabilizer.protocol.commands import CommandKind, CommandState
from stabilizer.protocol.decisions import IncidentState
from stabilizer.protocol.runs import RunState


@dataclass(frozen=True, slots=True)
class StateCounts:
    """How many there are of what; what there is none of is left out."""

    runs: Mapping[RunState, int]
    incidents: Mapping[IncidentState, int]
    commands: Mapping[tuple[CommandKind, CommandState], int]
    broken_rules: int
    """Rules that failed last, over the runs that this collector holds in memory."""


class OverviewService:
    """Counts over all runs. Each call is one transaction.

    Args:
        bench: Opens transactions.
        judge: Knows which rules work.
    """

    def __init__(self, bench: Workbench, judge: Judge) -> None:
        self._bench = bench
        self._judge = judge

    def counts(self) -> StateCounts:
        """Count at this moment.

        Raises:
            StorageError: The database does not answer.
        """
        with self._bench.reading() as repos:
            counts = CountRepository(repos.session)
            return StateCounts(
                runs=counts.runs(),
                incidents=counts.incidents(),
                commands=counts.commands(),
                broken_rules=self._judge.num_broken_rules(),
            )
