"""All tables, alike on SQLite and PostgreSQL. Alembic's migrations create them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    SmallInteger,
    String,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column

from stabilizer.collector.storage.column_types import BigId, Id, Table


class RunRow(Table):
    """A training job through all restarts and rollbacks."""

    __tablename__ = "runs"
    __table_args__ = (UniqueConstraint("name", "key"), Index(None, "state", "last_seen_at"))

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str]
    key: Mapped[str]
    keyless: Mapped[bool]
    """Whether the job gave no key; the collector has chosen one if others live under its name."""
    scheduler: Mapped[str]
    """Scheduler's id of the process that registered last; empty for none."""
    scheduler_restarts: Mapped[int]
    notice: Mapped[str]
    """Told to the job with every answer: another live job has its name."""
    state: Mapped[str] = mapped_column(String(16))
    state_before_lost: Mapped[str | None] = mapped_column(String(16))
    mode: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int]
    step: Mapped[int]
    world_size: Mapped[int]
    global_batch: Mapped[int | None]
    git_revision: Mapped[str | None]
    rewind: Mapped[str | None] = mapped_column(String(16))
    rewind_reason: Mapped[str]
    rules_hash: Mapped[str] = mapped_column(ForeignKey("rule_sets.hash"))
    brought_rules: Mapped[str] = mapped_column(String(64))
    """Hash of the rules that its job brought; empty if it brought none."""
    config: Mapped[dict[str, Any]]
    agent_health: Mapped[dict[str, Any]]
    """Latest counts of what the job failed to send."""
    message: Mapped[str]
    heartbeat_seconds: Mapped[float]
    phase: Mapped[str] = mapped_column(String(16))
    version: Mapped[int]
    """Counts the changes that the rules have processed; a brain of another version is stale."""
    created_at: Mapped[datetime] = mapped_column(index=True)
    last_seen_at: Mapped[datetime]
    stepped_at: Mapped[datetime | None]
    """When it last completed a step; None for one that has not since version 0.2."""


class AttemptRow(Table):
    """A stretch of a run between two starts or rollbacks."""

    __tablename__ = "attempts"
    __table_args__ = (
        Index(None, "run_id", "attempt_id", unique=True),
        Index(None, "attempt_id"),
    )

    run_id: Mapped[str] = mapped_column(
        Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Given by the collector in the order of arrival."""
    attempt_id: Mapped[str] = mapped_column(Id)
    """Minted by the job."""
    origin_id: Mapped[str] = mapped_column(Id)
    """First attempt of the same process."""
    parent_id: Mapped[str | None] = mapped_column(Id)
    from_step: Mapped[int]
    last_step: Mapped[int]
    parent: Mapped[int | None]
    reason: Mapped[str] = mapped_column(String(32))
    command_id: Mapped[str | None]
    skipped_samples: Mapped[int]
    started_at: Mapped[datetime]
    accepted_sequence: Mapped[int]
    """Highest sequence stored; -1 for none."""
    late: Mapped[bool]
    """It arrived after a later process had registered, and was never the newest."""
    num_batches: Mapped[int]
    """Batches stored; accepted_sequence + 1 - num_batches are missing."""


class SnapshotRow(Table):
    """A snapshot that the job holds now."""

    __tablename__ = "snapshots"

    run_id: Mapped[str] = mapped_column(
        Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]
    """Place in the job's list."""
    attempt: Mapped[int]
    step: Mapped[int]
    finite: Mapped[bool]
    samples: Mapped[int]
    num_bytes: Mapped[int]


class MarkerRow(Table):
    """An event of the job at a step."""

    __tablename__ = "markers"

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(Id, ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    attempt: Mapped[int]
    step: Mapped[int]
    kind: Mapped[str] = mapped_column(String(32))
    text: Mapped[str]
    at: Mapped[datetime]


class CatalogRow(Table):
    """An ordered list of series that are measured together."""

    __tablename__ = "catalogs"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    """Hash of the content."""
    num_series: Mapped[int]
    created_at: Mapped[datetime]


class SeriesRow(Table):
    """A column of a catalog."""

    __tablename__ = "series"

    catalog_id: Mapped[str] = mapped_column(
        Id, ForeignKey("catalogs.id", ondelete="CASCADE"), primary_key=True
    )
    slot: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Place in the catalog, from 0."""
    metric: Mapped[str] = mapped_column(String(120), index=True)
    text: Mapped[str]
    """Text form, as `SeriesKey` writes it."""


class RunCatalogRow(Table):
    """A catalog that a run uses."""

    __tablename__ = "run_catalogs"

    run_id: Mapped[str] = mapped_column(
        Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True
    )
    catalog_id: Mapped[str] = mapped_column(
        Id, ForeignKey("catalogs.id"), primary_key=True, index=True
    )
    position: Mapped[int]
    """Order of registration in the run."""


class TickRow(Table):
    """What a clock showed of a run, where it changed an alert of rules on wall-clock time."""

    __tablename__ = "ticks"
    __table_args__ = (Index(None, "run_id", "version"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(Id, ForeignKey("runs.id", ondelete="CASCADE"))
    version: Mapped[int]
    """The run's version after it: its place among the batches."""
    step: Mapped[int]
    silent: Mapped[float | None]
    stalled: Mapped[float | None]
    behind: Mapped[float | None]
    at: Mapped[datetime]


class BatchRow(Table):
    """A stored batch; its key detects duplicates."""

    __tablename__ = "batches"
    __table_args__ = (
        ForeignKeyConstraint(
            ["run_id", "attempt"], ["attempts.run_id", "attempts.number"], ondelete="CASCADE"
        ),
        Index(None, "run_id", "version"),
    )

    run_id: Mapped[str] = mapped_column(Id, primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int]
    """The run's version after it: the order of arrival."""
    evaluated: Mapped[bool]
    """Whether the rules processed it; batches of past attempts are stored only."""
    num_frames: Mapped[int]
    received_at: Mapped[datetime]


class FrameRow(Table):
    """Frames of one catalog as they came in one batch."""

    __tablename__ = "frames"
    __table_args__ = (
        ForeignKeyConstraint(
            ["run_id", "attempt", "sequence"],
            ["batches.run_id", "batches.attempt", "batches.sequence"],
            ondelete="CASCADE",
        ),
        Index(None, "run_id", "catalog_id", "attempt", "first_step"),
    )

    run_id: Mapped[str] = mapped_column(Id, primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    block: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    catalog_id: Mapped[str] = mapped_column(Id, ForeignKey("catalogs.id"))
    first_step: Mapped[int]
    last_step: Mapped[int]
    num_frames: Mapped[int]
    codec: Mapped[int] = mapped_column(SmallInteger)
    """Encoding of the columns below; 0: little-endian, as in a batch."""
    steps: Mapped[bytes] = mapped_column(LargeBinary)
    times: Mapped[bytes] = mapped_column(LargeBinary)
    present: Mapped[bytes | None] = mapped_column(LargeBinary)
    """Presence bits; None if everything was measured."""
    values: Mapped[bytes] = mapped_column(LargeBinary)


class RuleSetRow(Table):
    """A rule file, kept while any run refers to it."""

    __tablename__ = "rule_sets"

    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    text: Mapped[str]
    created_at: Mapped[datetime]


class RuleVersionRow(Table):
    """A version of the rules of a run, or of those of runs without rules of their own."""

    __tablename__ = "rule_versions"
    __table_args__ = (Index(None, "run_id", "number", unique=True),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    run_id: Mapped[str | None] = mapped_column(Id, ForeignKey("runs.id", ondelete="CASCADE"))
    """None for the collector's rules."""
    number: Mapped[int]
    hash: Mapped[str] = mapped_column(ForeignKey("rule_sets.hash"))
    base: Mapped[str] = mapped_column(String(64))
    """Hash of the file that it was made from: the version counts until that file changes."""
    actor: Mapped[str]
    reason: Mapped[str]
    created_at: Mapped[datetime]


class BrainStateRow(Table):
    """The state of a run's rules as of a version; later batches are replayed on it."""

    __tablename__ = "brain_states"

    run_id: Mapped[str] = mapped_column(
        Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True
    )
    rules_hash: Mapped[str] = mapped_column(ForeignKey("rule_sets.hash"))
    generation: Mapped[int]
    """Number of the run's brain; a change of rules starts a new one."""
    incident_offset: Mapped[int]
    """Incidents of earlier generations, so that numbering continues."""
    version: Mapped[int]
    state: Mapped[bytes] = mapped_column(LargeBinary)
    context: Mapped[dict[str, Any]]
    """The policy's context at the last step; a replay uses the same."""
    seen: Mapped[dict[str, Any]]
    """Last step evaluated, by catalog."""


class RuleStatusRow(Table):
    """What pages show of a run's rules, as of its last commit."""

    __tablename__ = "rule_statuses"

    run_id: Mapped[str] = mapped_column(
        Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True
    )
    healthy: Mapped[list[Any]]
    """Ids of the healthy snapshots, oldest first."""
    health: Mapped[list[Any]]
    """Of each rule, in the order of its file: name, ok, last_error, evaluations."""
    risk: Mapped[dict[str, Any] | None]
    """Its probability and signals; null while too little is known."""


class IncidentRow(Table):
    """The alerts of one run that call for one decision."""

    __tablename__ = "incidents"
    __table_args__ = (UniqueConstraint("run_id", "number"), Index(None, "run_id", "state"))

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    run_id: Mapped[str] = mapped_column(Id, ForeignKey("runs.id", ondelete="CASCADE"))
    number: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int]
    first_step: Mapped[int]
    opened_step: Mapped[int]
    resolved_step: Mapped[int | None]
    severity: Mapped[str] = mapped_column(String(16))
    rules: Mapped[list[Any]]
    rung: Mapped[int]
    decision: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(32))
    message: Mapped[str]
    helped: Mapped[bool | None]
    opened_at: Mapped[datetime]
    resolved_at: Mapped[datetime | None]


class DecisionRow(Table):
    """One decision on an incident."""

    __tablename__ = "decisions"

    incident_id: Mapped[str] = mapped_column(
        Id, ForeignKey("incidents.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    step: Mapped[int]
    attempt: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(32))
    message: Mapped[str]
    rung: Mapped[int | None]
    deadline_step: Mapped[int | None]
    command_id: Mapped[str | None]


class AlertRow(Table):
    """A rule's instance on one set of labels."""

    __tablename__ = "alerts"
    __table_args__ = (
        UniqueConstraint("run_id", "key"),
        Index(None, "run_id", "state", "pending_step"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    run_id: Mapped[str] = mapped_column(Id, ForeignKey("runs.id", ondelete="CASCADE"))
    key: Mapped[str] = mapped_column(String(32))
    """Hash of generation, attempt, rule, series and pending step."""
    attempt: Mapped[int]
    rule: Mapped[str]
    rule_hash: Mapped[str] = mapped_column(String(64))
    severity: Mapped[str] = mapped_column(String(16))
    series: Mapped[str]
    state: Mapped[str] = mapped_column(String(16))
    pending_step: Mapped[int]
    firing_step: Mapped[int | None]
    resolved_step: Mapped[int | None]
    value: Mapped[float | None]
    score: Mapped[float | None]
    threshold: Mapped[float | None]
    message: Mapped[str]
    incident_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("incidents.id", ondelete="SET NULL"), index=True
    )


class CommandRow(Table):
    """An instruction to a job. Stored before it is sent."""

    __tablename__ = "commands"
    __table_args__ = (
        UniqueConstraint("run_id", "key"),
        Index(None, "run_id", "state"),
        Index(None, "state", "expires_at"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    run_id: Mapped[str] = mapped_column(Id, ForeignKey("runs.id", ondelete="CASCADE"))
    number: Mapped[int]
    """Order of issue in the run, from 1."""
    key: Mapped[str]
    """The policy's key and generation, or the id of a manual command."""
    attempt: Mapped[int]
    kind: Mapped[str] = mapped_column(String(32))
    parameters: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(32))
    """Why it was issued, or why it was not applied."""
    message: Mapped[str]
    issued_reason: Mapped[str] = mapped_column(String(32))
    issued_message: Mapped[str]
    incident_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("incidents.id", ondelete="SET NULL")
    )
    actor: Mapped[str]
    fence: Mapped[int]
    issued_step: Mapped[int | None]
    issued_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    delivered_at: Mapped[datetime | None]
    settled_at: Mapped[datetime | None]
    result: Mapped[dict[str, Any] | None]


class ControlRow(Table):
    """The global disarm. One row, with id 1."""

    __tablename__ = "control"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    disarmed: Mapped[bool]
    reason: Mapped[str]
    actor: Mapped[str]
    changed_at: Mapped[datetime]


class SilenceRow(Table):
    """A rule that is excluded from decisions for a while."""

    __tablename__ = "silences"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    rule: Mapped[str]
    run_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("runs.id", ondelete="CASCADE"), index=True
    )
    until_step: Mapped[int | None]
    until: Mapped[datetime | None]
    reason: Mapped[str]
    actor: Mapped[str]
    created_at: Mapped[datetime]


class AuditRow(Table):
    """An entry of the audit log. The database refuses to change or delete it.

    It names its run without a foreign key and so outlives the run.
    """

    __tablename__ = "audit"
    __table_args__ = (Index(None, "run_id", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    at: Mapped[datetime]
    run_id: Mapped[str | None] = mapped_column(Id)
    actor: Mapped[str]
    action: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str]
    reason: Mapped[str] = mapped_column(String(32))
    message: Mapped[str]
    before: Mapped[dict[str, Any] | None]
    after: Mapped[dict[str, Any] | None]
