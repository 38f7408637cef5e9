"""`stabilizer db`: the schema of the database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabilizer.cli.failures import EXIT_UNUSABLE, needs_extra, told_plainly
from stabilizer.errors import ConfigurationError
from stabilizer.settings import load_collector_settings

app = typer.Typer(help="The schema of the database.", no_args_is_help=True)

DatabaseOption = Annotated[
    str | None,
    typer.Option("--database", help="URL of the database; else STABILIZER_DATABASE_URL."),
]


@app.command()
def upgrade(database: DatabaseOption = None) -> None:
    """Bring the database to the schema of this version; `serve` does it by itself."""
    with told_plainly():
        url = _database_url(database)
        with needs_extra("collector"):
            from stabilizer.collector.storage import engine, migrate  # noqa: PLC0415  an extra
        # Through the lock: a running collector must not lose its tables under its feet.
        opened = engine.Database(engine.parse_url(url))
        try:
            migrate.upgrade(opened.engine)
            revision = migrate.current(opened.engine)
        finally:
            opened.close()
    typer.echo(f"revision {revision}")


@app.command()
def current(database: DatabaseOption = None) -> None:
    """Show the revision of the database; status 2 if it is not that of this version."""
    with told_plainly():
        url = _database_url(database)
        with needs_extra("collector"):
            from stabilizer.collector.storage import engine, migrate  # noqa: PLC0415  an extra
        parsed = engine.parse_url(url)
        if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).exists():
            raise ConfigurationError(f"there is no database file {parsed.database}")
        looked_at = engine.build_engine(parsed)  # without the lock: looking is always allowed
        try:
            revision, newest = migrate.current(looked_at), migrate.head()
        finally:
            looked_at.dispose()
    is_newest = revision == newest
    typer.echo(f"revision {revision or 'none'}" + ("" if is_newest else f", newest {newest}"))
    if not is_newest:
        raise typer.Exit(EXIT_UNUSABLE)


def _database_url(given: str | None) -> str:
    settings = load_collector_settings(**({"database_url": given} if given else {}))
    return settings.database_url
