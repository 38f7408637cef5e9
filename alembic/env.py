"""Run by Alembic: connects it to our tables."""

from __future__ import annotations

import os
from logging.config import fileConfig
from pathlib import Path
from typing import Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection, TypeDecorator

from stabilizer.collector.storage.engine import build_engine, parse_url
from stabilizer.collector.storage.models import Table


def render_item(kind: str, item: object, autogen: AutogenContext) -> str | Literal[False]:
    """Write our column types as what they are in the database: models may change, the past not."""
    if kind == "type" and isinstance(item, TypeDecorator):
        autogen.imports.add("import sqlalchemy as sa")
        return f"sa.{item.impl_instance!r}"
    return False


def run(connection: Connection) -> None:
    """Migrate over an open connection; whoever opened it commits."""
    if connection.dialect.name == "postgresql":
        # A migration that cannot get its lock must not make every other statement queue behind it.
        connection.exec_driver_sql("SET LOCAL lock_timeout = '10s'")
    context.configure(
        connection=connection,
        target_metadata=Table.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        render_item=render_item,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def main() -> None:
    """Use the connection of the program, or open one when started from the command line."""
    given = context.config.attributes.get("connection")
    if given is not None:
        run(given)
        return
    if (
        context.config.config_file_name is not None
        and Path(context.config.config_file_name).is_file()
    ):
        fileConfig(context.config.config_file_name, disable_existing_loggers=False)
    url = context.get_x_argument(as_dictionary=True).get(
        "url", os.environ.get("STABILIZER_DATABASE_URL", "sqlite:///stabilizer.db")
    )
    engine = build_engine(parse_url(url))
    with engine.begin() as connection:
        run(connection)
    engine.dispose()


main()
