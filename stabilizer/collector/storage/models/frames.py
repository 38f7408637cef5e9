"""Catalogs, series and the journal of frames."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, LargeBinary, SmallInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from stabilizer.collector.storage.models.table import Id, Table


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
    """In which order the run named them."""


class BatchRow(Table):
    """A batch that has been stored: the proof that it need not be stored again."""

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
    """Whether the rules saw it; batches of a past attempt are only kept."""
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
    """How the columns below are written; 0: little-endian, as in a batch."""
    steps: Mapped[bytes] = mapped_column(LargeBinary)
    times: Mapped[bytes] = mapped_column(LargeBinary)
    present: Mapped[bytes | None] = mapped_column(LargeBinary)
    """Presence bits; None if everything was measured."""
    values: Mapped[bytes] = mapped_column(LargeBinary)
