"""Store versions of rule files, and which rules the job of each run brought.

A run that is there already counts as one with rules of its own, until it registers again.

Revision: 0008
Follows: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    column = sa.Column("brought_rules", sa.String(length=64), nullable=False, server_default="")
    op.add_column("runs", column)
    op.execute("UPDATE runs SET brought_rules = rules_hash")
    if op.get_context().dialect.name == "postgresql":
        op.alter_column("runs", "brought_rules", server_default=None)
    op.create_table(
        "rule_versions",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("run_id", sa.String(length=32), nullable=True),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("base", sa.String(length=64), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name=op.f("fk_rule_versions_run_id_runs"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["hash"], ["rule_sets.hash"], name=op.f("fk_rule_versions_hash_rule_sets")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rule_versions")),
    )
    op.create_index(
        op.f("ix_rule_versions_run_id_number"), "rule_versions", ["run_id", "number"], unique=True
    )


def downgrade() -> None:
    op.drop_table("rule_versions")
    op.drop_column("runs", "brought_rules")
