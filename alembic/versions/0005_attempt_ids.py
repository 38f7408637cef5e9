"""Give attempts the ids that jobs mint; let runs share a name.

SQLite adds columns and indexes in place: to rebuild a table there would delete what refers to it.

Revision: 0005
Follows: 0004
"""

from __future__ import annotations

import hashlib

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ATTEMPT_COLUMNS = ("attempt_id", "origin_id", "parent_id")
RUN_COLUMNS = ("keyless", "scheduler", "scheduler_restarts", "notice")


def upgrade() -> None:
    add_attempt_ids()
    fill_attempt_ids()
    op.create_index(
        op.f("ix_attempts_run_id_attempt_id"), "attempts", ["run_id", "attempt_id"], unique=True
    )
    op.create_index(op.f("ix_attempts_attempt_id"), "attempts", ["attempt_id"], unique=False)
    add_run_identity()


def downgrade() -> None:
    op.drop_index(op.f("ix_attempts_attempt_id"), table_name="attempts")
    op.drop_index(op.f("ix_attempts_run_id_attempt_id"), table_name="attempts")
    for column in (*ATTEMPT_COLUMNS, "late"):
        op.drop_column("attempts", column)
    for column in RUN_COLUMNS:
        op.drop_column("runs", column)


def add_attempt_ids() -> None:
    for column in ("attempt_id", "origin_id"):
        op.add_column(
            "attempts", sa.Column(column, sa.String(length=32), nullable=False, server_default="")
        )
    op.add_column("attempts", sa.Column("parent_id", sa.String(length=32), nullable=True))
    op.add_column(
        "attempts", sa.Column("late", sa.Boolean(), nullable=False, server_default=sa.false())
    )


def fill_attempt_ids() -> None:
    columns = ("run_id", "number", "parent", *ATTEMPT_COLUMNS)
    attempts = sa.table("attempts", *(sa.column(name) for name in columns))
    connection = op.get_bind()
    rows = connection.execute(sa.select(attempts.c.run_id, attempts.c.number, attempts.c.parent))
    for run_id, number, parent in rows.all():
        own = attempt_id(run_id, number)
        connection.execute(
            attempts.update()
            .where(attempts.c.run_id == run_id, attempts.c.number == number)
            .values(
                attempt_id=own,
                origin_id=own,
                parent_id=None if parent is None else attempt_id(run_id, parent),
            )
        )


def attempt_id(run_id: str, number: int) -> str:
    """As the collector names attempts of jobs that only number them."""
    return hashlib.blake2b(f"{run_id}/{number}".encode(), digest_size=16).hexdigest()


def add_run_identity() -> None:
    new = (
        sa.Column("keyless", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("scheduler", sa.Text(), nullable=False, server_default=""),
        sa.Column("scheduler_restarts", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("notice", sa.Text(), nullable=False, server_default=""),
    )
    for column in new:
        op.add_column("runs", column)
    runs = sa.table("runs", sa.column("key"), sa.column("keyless"))
    op.execute(runs.update().where(runs.c.key == "").values(keyless=sa.true()))
