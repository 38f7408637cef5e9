"""Alerts, incidents, decisions and commands."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from stabilizer.collector.storage.models.table import Id, Table

_RUN = "runs.id"


class IncidentRow(Table):
    """The alerts of one run that call for one decision."""

    __tablename__ = "incidents"
    __table_args__ = (UniqueConstraint("run_id", "number"), Index(None, "run_id", "state"))

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    run_id: Mapped[str] = mapped_column(Id, ForeignKey(_RUN, ondelete="CASCADE"))
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
    run_id: Mapped[str] = mapped_column(Id, ForeignKey(_RUN, ondelete="CASCADE"))
    key: Mapped[str] = mapped_column(String(32))
    """Hash of generation, attempt, rule, series and the step at which it became pending."""
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
    """An instruction to a job. Written before it is sent."""

    __tablename__ = "commands"
    __table_args__ = (
        UniqueConstraint("run_id", "key"),
        Index(None, "run_id", "state"),
        Index(None, "state", "expires_at"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    run_id: Mapped[str] = mapped_column(Id, ForeignKey(_RUN, ondelete="CASCADE"))
    number: Mapped[int]
    """Counts the commands of the run, from 1: the order in which they were issued."""
    key: Mapped[str]
    """The policy's name for it with its generation, or the id for one by hand."""
    attempt: Mapped[int]
    kind: Mapped[str] = mapped_column(String(32))
    parameters: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(32))
    """Why it was issued; or, when it was not carried out, why not."""
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
