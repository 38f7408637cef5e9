"""Store what a rollback gives back of each run.

Revision: 0010
Follows: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("rewind", sa.String(16), nullable=True))
    op.add_column("runs", sa.Column("rewind_reason", sa.Text(), nullable=False, server_default=""))
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("runs", "rewind_reason", server_default=None)


def downgrade() -> None:
    op.drop_column("runs", "rewind")
    op.drop_column("runs", "rewind_reason")
