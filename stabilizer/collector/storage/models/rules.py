"""Rule sets by content, and how far the rules have got in each run."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from stabilizer.collector.storage.models.table import Id, Table


class RuleSetRow(Table):
    """A rule file, kept as long as anything was judged by it."""

    __tablename__ = "rule_sets"

    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    text: Mapped[str]
    created_at: Mapped[datetime]


class BrainStateRow(Table):
    """The state of a run's rules after a version; later batches are replayed on top of it."""

    __tablename__ = "brain_states"

    run_id: Mapped[str] = mapped_column(
        Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True
    )
    rules_hash: Mapped[str] = mapped_column(ForeignKey("rule_sets.hash"))
    generation: Mapped[int]
    """Counts the brains that the run has had; a change of rules begins a new one."""
    incident_offset: Mapped[int]
    """Incidents of earlier generations, so that numbers go on."""
    version: Mapped[int]
    state: Mapped[bytes] = mapped_column(LargeBinary)
    context: Mapped[dict[str, Any]]
    """What the policy was told at the last step; the same holds for what is replayed."""
    seen: Mapped[dict[str, Any]]
    """Last step that the rules saw, by catalog."""
