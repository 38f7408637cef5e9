"""Rule sets and what follows from them: alerts, incidents, decisions and commands."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import func, select

from stabilizer.collector.storage.engine import Repository, insert_unless_present
from stabilizer.collector.storage.models import (
    AlertRow,
    BrainStateRow,
    CommandRow,
    DecisionRow,
    IncidentRow,
    RuleSetRow,
    RuleStatusRow,
    RuleVersionRow,
    TickRow,
)
from stabilizer.errors import NotFoundError, StorageError
from stabilizer.protocol.commands import SETTLED_STATES, Command, CommandState
from stabilizer.protocol.decisions import Alert, AlertState, Decision, Incident, IncidentState

UNSETTLED = tuple(state for state in CommandState if state not in SETTLED_STATES)


class RuleRepository(Repository):
    """Rule sets, brain states and rule statuses of one session."""

    def add_set(self, content_hash: str, text: str, now: datetime) -> None:
        """Store a rule file unless it is stored."""
        row = {"hash": content_hash, "text": text, "created_at": now}
        insert_unless_present(self._session, RuleSetRow, [row])

    def text(self, content_hash: str) -> str:
        """Return the text of a stored rule file.

        Raises:
            StorageError: It is missing, although a run refers to it.
        """
        row = self._session.get(RuleSetRow, content_hash)
        if row is None:
            raise StorageError(f"rule set {content_hash} is missing in the database")
        return row.text

    def state(self, run_id: str) -> BrainStateRow | None:
        """Return the last saved state of a run's rules."""
        return self._session.get(BrainStateRow, run_id)

    def add_state(self, row: BrainStateRow) -> None:
        """Store the first state of a run's rules."""
        self._session.add(row)

    def status(self, run_id: str) -> RuleStatusRow | None:
        """Return what pages show of a run's rules."""
        return self._session.get(RuleStatusRow, run_id)

    def add_status(self, run_id: str) -> RuleStatusRow:
        """Store an empty status of a run."""
        row = RuleStatusRow(run_id=run_id, healthy=[], health=[])
        self._session.add(row)
        return row

    def add_version(self, row: RuleVersionRow) -> None:
        """Store a version; its rule file must be stored."""
        self._session.add(row)
        self._session.flush()

    def versions(self, run_id: str | None, limit: int) -> list[RuleVersionRow]:
        """Return the newest versions of a run's rules, or of the collector's, newest first."""
        query = select(RuleVersionRow).where(RuleVersionRow.run_id.is_not_distinct_from(run_id))
        query = query.order_by(RuleVersionRow.number.desc()).limit(limit)
        return list(self._session.scalars(query))

    def newest_version(self, run_id: str | None) -> RuleVersionRow | None:
        """Return the newest version, if there is one."""
        return next(iter(self.versions(run_id, 1)), None)

    def last_version(self, run_id: str | None) -> int | None:
        """Return the number of the newest version, if there is one."""
        newest = self.newest_version(run_id)
        return None if newest is None else newest.number

    def version(self, run_id: str | None, number: int) -> RuleVersionRow | None:
        """Return a version by its number."""
        is_of_run = RuleVersionRow.run_id.is_not_distinct_from(run_id)
        query = select(RuleVersionRow).where(is_of_run, RuleVersionRow.number == number)
        return self._session.scalar(query)

    def add_tick(self, row: TickRow) -> None:
        """Store a tick."""
        self._session.add(row)

    def ticks(self, run_id: str) -> list[TickRow]:
        """Return the ticks of a run in the order in which they were evaluated."""
        query = select(TickRow).where(TickRow.run_id == run_id).order_by(TickRow.version)
        return list(self._session.scalars(query))

    def healthy_snapshots(self, run_id: str) -> frozenset[str]:
        """Return the ids of a run's healthy snapshots as of its last commit."""
        status = self.status(run_id)
        return frozenset() if status is None else frozenset(status.healthy)


class AlertRepository(Repository):
    """Alerts of one session."""

    def find(self, run_id: str, key: str) -> AlertRow | None:
        """Return the alert with a key, or None."""
        query = select(AlertRow).where(AlertRow.run_id == run_id, AlertRow.key == key)
        return self._session.scalar(query)

    def add(self, row: AlertRow) -> None:
        """Store a new alert."""
        self._session.add(row)
        self._session.flush()

    def of_run(self, run_id: str, state: AlertState | None, limit: int) -> list[Alert]:
        """Return the newest alerts of a run, newest first."""
        query = select(AlertRow).where(AlertRow.run_id == run_id)
        if state is not None:
            query = query.where(AlertRow.state == state.value)
        query = query.order_by(
            AlertRow.attempt.desc(), AlertRow.pending_step.desc(), AlertRow.rule, AlertRow.id
        )
        return [
            Alert.model_validate(row, from_attributes=True)
            for row in self._session.scalars(query.limit(limit))
        ]

    def unsettled(self, run_id: str) -> list[AlertRow]:
        """Return the alerts of a run that are pending or firing."""
        query = select(AlertRow).where(
            AlertRow.run_id == run_id,
            AlertRow.state.in_([AlertState.PENDING.value, AlertState.FIRING.value]),
        )
        return list(self._session.scalars(query))


class IncidentRepository(Repository):
    """Incidents and decisions of one session."""

    def find(self, run_id: str, number: int) -> IncidentRow | None:
        """Return the incident with a number, or None."""
        query = select(IncidentRow).where(
            IncidentRow.run_id == run_id, IncidentRow.number == number
        )
        return self._session.scalar(query)

    def add(self, row: IncidentRow) -> None:
        """Store a new incident."""
        self._session.add(row)
        self._session.flush()

    def add_decision(self, row: DecisionRow) -> None:
        """Store a new decision."""
        self._session.add(row)

    def num_decisions(self, incident_id: str) -> int:
        """Count the decisions of an incident."""
        query = select(func.count()).where(DecisionRow.incident_id == incident_id)
        return self._session.scalar(query) or 0

    def last_number(self, run_id: str) -> int:
        """Return the number of the run's newest incident; 0 for none."""
        query = select(func.max(IncidentRow.number)).where(IncidentRow.run_id == run_id)
        return self._session.scalar(query) or 0

    def unresolved(self, run_id: str) -> list[IncidentRow]:
        """Return the unresolved incidents of a run, oldest first."""
        query = (
            select(IncidentRow)
            .where(
                IncidentRow.run_id == run_id,
                IncidentRow.state != IncidentState.RESOLVED.value,
            )
            .order_by(IncidentRow.number)
        )
        return list(self._session.scalars(query))

    def open_ids(self, run_ids: Sequence[str]) -> dict[str, str]:
        """Return the newest unresolved incident of each run: run id to incident id."""
        query = (
            select(IncidentRow.run_id, IncidentRow.id)
            .where(
                IncidentRow.run_id.in_(run_ids),
                IncidentRow.state != IncidentState.RESOLVED.value,
            )
            .order_by(IncidentRow.number)
        )
        return dict(self._session.execute(query).all())

    def require(self, incident_id: str) -> Incident:
        """Return an incident with its decisions.

        Raises:
            NotFoundError: There is none; code `unknown_incident`.
        """
        row = self._session.get(IncidentRow, incident_id)
        if row is None:
            raise NotFoundError(f"there is no incident {incident_id!r}", code="unknown_incident")
        return self._show([row])[0]

    def of_run(self, run_id: str) -> list[Incident]:
        """Return all incidents of a run, newest first, with their decisions."""
        query = (
            select(IncidentRow)
            .where(IncidentRow.run_id == run_id)
            .order_by(IncidentRow.number.desc())
        )
        return self._show(list(self._session.scalars(query)))

    def _show(self, rows: Sequence[IncidentRow]) -> list[Incident]:
        query = (
            select(DecisionRow)
            .where(DecisionRow.incident_id.in_([row.id for row in rows]))
            .order_by(DecisionRow.incident_id, DecisionRow.position)
        )
        decisions: dict[str, list[Decision]] = {}
        for row in self._session.scalars(query):
            decisions.setdefault(row.incident_id, []).append(
                Decision.model_validate(row, from_attributes=True)
            )
        return [
            Incident.model_validate(
                {
                    name: getattr(row, name)
                    for name in Incident.model_fields
                    if name not in ("rules", "decisions")
                }
                | {"rules": tuple(row.rules), "decisions": tuple(decisions.get(row.id, ()))}
            )
            for row in rows
        ]


class CommandRepository(Repository):
    """Commands of one session."""

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
        """Return the command with a key, or None."""
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
        """Return commands of a run in order of issue; without states: all."""
        query = select(CommandRow).where(CommandRow.run_id == run_id)
        if states:
            query = query.where(CommandRow.state.in_([state.value for state in states]))
        return list(self._session.scalars(query.order_by(CommandRow.number)))

    def runs_with_due(self, now: datetime) -> list[str]:
        """Return the runs with an unsettled command that has expired."""
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
    """Convert a row to a message."""
    return Command.model_validate(row, from_attributes=True)
