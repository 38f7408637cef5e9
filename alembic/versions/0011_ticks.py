"""Store when each run last stepped, and the ticks that rules on wall-clock time have seen.

Revision: 0011
Follows: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not in a batch: SQLite would make the table anew, and drop what refers to it.
    op.add_column("runs", sa.Column("stepped_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "ticks",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("silent", sa.String(length=32), nullable=True),
        sa.Column("stalled", sa.String(length=32), nullable=True),
        sa.Column("behind", sa.String(length=32), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name=op.f("fk_ticks_run_id_runs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ticks")),
    )
    op.create_index(op.f("ix_ticks_run_id_version"), "ticks", ["run_id", "version"], unique=False)


def downgrade() -> None:
    op.drop_table("ticks")
    op.drop_column("runs", "stepped_at")
