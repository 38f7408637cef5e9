"""Store the risk of each run beside the status of its rules.

Revision: 0009
Follows: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("rule_statuses", sa.Column("risk", sa.Text(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("rule_statuses") as batch:
        batch.drop_column("risk")
