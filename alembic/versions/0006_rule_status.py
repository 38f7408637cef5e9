"""Store the healthy snapshots and the rule health of each run, for reads without its lock.

Revision: 0006
Follows: 0005
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import sqlalchemy as sa
from alembic import op
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    statuses = op.create_table(
        "rule_statuses",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("healthy", sa.Text(), nullable=False),
        sa.Column("health", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name=op.f("fk_rule_statuses_run_id_runs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_rule_statuses")),
    )
    if not op.get_context().as_sql:
        copy_statuses(op.get_bind(), statuses)


def downgrade() -> None:
    op.drop_table("rule_statuses")


def copy_statuses(connection: sa.Connection, statuses: sa.Table) -> None:
    """Read the statuses out of the saved rule states; the next commit of a run renews its own."""
    query = sa.text(
        "SELECT s.run_id, s.state, r.text FROM brain_states s JOIN rule_sets r"
        " ON r.hash = s.rules_hash"
    )
    for run_id, state, text in connection.execute(query).all():
        status = read_status(bytes(state), text)
        if status is not None:
            connection.execute(statuses.insert().values(run_id=run_id, **status))


def read_status(state: bytes, rules: str) -> dict[str, str] | None:
    """Return a row's values; None for a state that cannot be read."""
    try:
        body = zlib.decompress(state[6:])  # after the magic and the version
        (length,) = struct.unpack_from("<I", body)
        head: dict[str, Any] = json.loads(body[4 : 4 + length])["head"]
        names = [rule["name"] for rule in YAML(typ="safe", pure=True).load(rules)["rules"]]
        health = [
            {"name": name, **{key: rule[key] for key in ("ok", "last_error", "evaluations")}}
            for name, rule in zip(names, head["rules"], strict=True)
        ]
        healthy = head["memory"]["lineage"]["healthy"]
        return {"healthy": json.dumps(healthy), "health": json.dumps(health)}
    except (zlib.error, struct.error, YAMLError, KeyError, TypeError, ValueError):
        return None
