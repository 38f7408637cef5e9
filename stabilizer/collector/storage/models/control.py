"""The switch over all runs, silences, and the log of everything that was done."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from stabilizer.collector.storage.models.table import BigId, Id, Table


class ControlRow(Table):
    """The global disarm. One row, with id 1."""

    __tablename__ = "control"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    disarmed: Mapped[bool]
    reason: Mapped[str]
    actor: Mapped[str]
    changed_at: Mapped[datetime]


class SilenceRow(Table):
    """A mute of a rule."""

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
    """One thing that was done. The database refuses to change or delete it.

    It names its run without a foreign key, so that it outlives the run.
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
