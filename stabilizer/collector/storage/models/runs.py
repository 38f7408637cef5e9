"""Runs, their attempts, what happened to them and which snapshots they hold."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from stabilizer.collector.storage.models.table import BigId, Id, Table


class RunRow(Table):
    """A training job through all restarts and rollbacks."""

    __tablename__ = "runs"
    __table_args__ = (UniqueConstraint("name", "key"), Index(None, "state", "last_seen_at"))

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str]
    key: Mapped[str]
    state: Mapped[str] = mapped_column(String(16))
    state_before_lost: Mapped[str | None] = mapped_column(String(16))
    mode: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int]
    step: Mapped[int]
    world_size: Mapped[int]
    global_batch: Mapped[int | None]
    git_revision: Mapped[str | None]
    rules_hash: Mapped[str] = mapped_column(ForeignKey("rule_sets.hash"))
    config: Mapped[dict[str, Any]]
    agent_health: Mapped[dict[str, Any]]
    """Latest counts of what the job could not send."""
    message: Mapped[str]
    heartbeat_seconds: Mapped[float]
    version: Mapped[int]
    """Counts every change that the run's rules have seen; a brain of another version is stale."""
    created_at: Mapped[datetime] = mapped_column(index=True)
    last_seen_at: Mapped[datetime]


class AttemptRow(Table):
    """A stretch of a run between two starts or rollbacks."""

    __tablename__ = "attempts"

    run_id: Mapped[str] = mapped_column(
        Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    from_step: Mapped[int]
    last_step: Mapped[int]
    parent: Mapped[int | None]
    reason: Mapped[str] = mapped_column(String(32))
    command_id: Mapped[str | None]
    skipped_samples: Mapped[int]
    started_at: Mapped[datetime]
    accepted_sequence: Mapped[int]
    """Highest sequence stored; -1 for none."""
    num_batches: Mapped[int]
    """Batches stored; accepted_sequence + 1 - num_batches have not come."""


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
