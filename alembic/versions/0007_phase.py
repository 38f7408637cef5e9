"""Store the phase of each run's loss, for lists and pages.

Revision: 0007
Follows: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    column = sa.Column("phase", sa.String(length=16), nullable=False, server_default="learning")
    op.add_column("runs", column)
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("runs", "phase", server_default=None)


def downgrade() -> None:
    op.drop_column("runs", "phase")
