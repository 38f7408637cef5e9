"""Create catalogs and the journal of frames.

Revision: 0002
Follows: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_catalogs()
    create_series()
    create_run_catalogs()
    create_batches()
    create_frames()


def downgrade() -> None:
    op.drop_table("frames")
    op.drop_table("batches")
    op.drop_table("run_catalogs")
    op.drop_table("series")
    op.drop_table("catalogs")


def create_catalogs() -> None:
    op.create_table(
        "catalogs",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("num_series", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_catalogs")),
    )


def create_series() -> None:
    op.create_table(
        "series",
        sa.Column("catalog_id", sa.String(length=32), nullable=False),
        sa.Column("slot", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("metric", sa.String(length=120), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["catalog_id"],
            ["catalogs.id"],
            name=op.f("fk_series_catalog_id_catalogs"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("catalog_id", "slot", name=op.f("pk_series")),
    )
    op.create_index(op.f("ix_series_metric"), "series", ["metric"], unique=False)


def create_run_catalogs() -> None:
    op.create_table(
        "run_catalogs",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("catalog_id", sa.String(length=32), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["catalog_id"], ["catalogs.id"], name=op.f("fk_run_catalogs_catalog_id_catalogs")
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name=op.f("fk_run_catalogs_run_id_runs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "catalog_id", name=op.f("pk_run_catalogs")),
    )
    op.create_index(
        op.f("ix_run_catalogs_catalog_id"), "run_catalogs", ["catalog_id"], unique=False
    )


def create_batches() -> None:
    op.create_table(
        "batches",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("attempt", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("evaluated", sa.Boolean(), nullable=False),
        sa.Column("num_frames", sa.BigInteger(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "attempt"],
            ["attempts.run_id", "attempts.number"],
            name=op.f("fk_batches_run_id_attempt_attempts"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("run_id", "attempt", "sequence", name=op.f("pk_batches")),
    )
    op.create_index(
        op.f("ix_batches_run_id_version"), "batches", ["run_id", "version"], unique=False
    )


def create_frames() -> None:
    op.create_table(
        "frames",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("attempt", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("block", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("catalog_id", sa.String(length=32), nullable=False),
        sa.Column("first_step", sa.BigInteger(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("num_frames", sa.BigInteger(), nullable=False),
        sa.Column("codec", sa.SmallInteger(), nullable=False),
        sa.Column("steps", sa.LargeBinary(), nullable=False),
        sa.Column("times", sa.LargeBinary(), nullable=False),
        sa.Column("present", sa.LargeBinary(), nullable=True),
        sa.Column("values", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["catalog_id"], ["catalogs.id"], name=op.f("fk_frames_catalog_id_catalogs")
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "attempt", "sequence"],
            ["batches.run_id", "batches.attempt", "batches.sequence"],
            name=op.f("fk_frames_run_id_attempt_sequence_batches"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("run_id", "attempt", "sequence", "block", name=op.f("pk_frames")),
    )
    op.create_index(
        op.f("ix_frames_run_id_catalog_id_attempt_first_step"),
        "frames",
        ["run_id", "catalog_id", "attempt", "first_step"],
        unique=False,
    )
