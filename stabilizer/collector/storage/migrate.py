"""Migrate a database to the schema of this version."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from stabilizer.errors import StorageError

_CANDIDATES: Final = (
    Path(__file__).resolve().parents[3] / "alembic",
    Path(__file__).resolve().parents[2] / "alembic",
)
"""Beside the package in a checkout, inside it in an installed copy."""


def migrations_folder() -> Path:
    """Find the folder of migrations.

    Raises:
        StorageError: The installation lacks them.
    """
    for folder in _CANDIDATES:
        if (folder / "env.py").is_file():
            return folder
    raise StorageError(f"no migrations found; looked in {', '.join(map(str, _CANDIDATES))}")


def alembic_config(connection: Connection) -> Config:
    """Build Alembic's configuration for an open connection."""
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@cache
def head() -> str | None:
    """Return the newest revision that this version knows.

    Raises:
        StorageError: The installation lacks the migrations.
    """
    return ScriptDirectory(str(migrations_folder())).get_current_head()


def revision_of(connection: Connection) -> str | None:
    """Return the revision of an open database; None if it was never migrated."""
    return MigrationContext.configure(connection).get_current_revision()


def current(engine: Engine) -> str | None:
    """Return the revision of a database; None if it was never migrated.

    Raises:
        StorageError: The database does not answer.
    """
    try:
        with engine.connect() as connection:
            return revision_of(connection)
    except SQLAlchemyError as error:
        raise StorageError(f"the database does not answer: {error}") from error


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Upgrade a database to a revision in one transaction; idempotent.

    Raises:
        StorageError: It failed and nothing was changed; code `schema_unknown` if a newer version
            wrote the database.
    """
    try:
        with engine.begin() as connection:
            if revision != "head" or revision_of(connection) != head():
                command.upgrade(alembic_config(connection), revision)
    except CommandError as error:
        raise StorageError(
            f"the database has a schema that this version does not know: {error}",
            code="schema_unknown",
        ) from error
    except SQLAlchemyError as error:
        raise StorageError(f"the database could not be migrated: {error}") from error


def downgrade(engine: Engine, revision: str) -> None:
    """Downgrade a database to a revision (`base` for none) in one transaction.

    Raises:
        StorageError: It failed and nothing was changed.
    """
    try:
        with engine.begin() as connection:
            command.downgrade(alembic_config(connection), revision)
    except (CommandError, SQLAlchemyError) as error:
        raise StorageError(f"the database could not be downgraded: {error}") from error
