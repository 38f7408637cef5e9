"""`stabilizer db`: the schema of the database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabilizer.cli.failures import EXIT_UNUSABLE, exit_on_error, needs_extra
from stabilizer.errors import ConfigurationError
from stabilizer.settings import load_collector_settings

app = typer.Typer(help="The schema of the database.", no_args_is_help=True)

DatabaseOption = Annotated[
    str | None,
    typer.Option("--database", help="URL of the database; else STABILIZER_DATABASE_URL."),
]


@app.command()
def upgrade(database: DatabaseOption = None) -> None:
    """Migrate the database to the schema of this version; `serve` does so by itself."""
    with exit_on_error():
        url = _database_url(database)
        with needs_extra("collector"):
            from stabilizer.collector.storage import engine, migrate  # noqa: PLC0415  an extra
        # Takes the lock: never migrate the database of a running collector.
        opened = engine.Database(engine.parse_url(url))
        try:
            migrate.upgrade(opened.engine)
            revision = migrate.current(opened.engine)
        finally:
            opened.close()
    typer.echo(f"revision {revision}")


@app.command()
def current(database: DatabaseOption = None) -> None:
    """Show the revision of the database; status 2 if it is not the newest one."""
    with exit_on_error():
        url = _database_url(database)
        with needs_extra("collector"):
            from stabilizer.collector.storage import engine, migrate  # noqa: PLC0415  an extra
        parsed = engine.parse_url(url)
        if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).exists():
            raise ConfigurationError(f"there is no database file {parsed.database}")
        engine_read = engine.build_engine(parsed)  # without the lock: reading is always allowed
        try:
            revision, newest = migrate.current(engine_read), migrate.head()
        finally:
            engine_read.dispose()
    is_newest = revision == newest
    typer.echo(f"revision {revision or 'none'}" + ("" if is_newest else f", newest {newest}"))
    if not is_newest:
        raise typer.Exit(EXIT_UNUSABLE)


def _database_url(given: str | None) -> str:
    settings = load_collector_settings(**({"database_url": given} if given else {}))
    return settings.database_url
