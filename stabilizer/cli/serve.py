"""`stabilizer serve`: the collector."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from stabilizer.cli.failures import exit_on_error, needs_extra
from stabilizer.clock import SystemClock
from stabilizer.settings import load_collector_settings

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def serve(
    host: Annotated[str | None, typer.Option(help="Name or address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes any free one.")] = None,
    database: Annotated[
        str | None, typer.Option(help="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME.")
    ] = None,
    rules: Annotated[
        Path | None, typer.Option(help="Rules for runs without rules of their own.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with one token per line; required beyond loopback.")
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Write the URL to this file once requests are accepted.")
    ] = None,
) -> None:
    """Run the collector: serve the REST API until SIGTERM or Ctrl-C.

    Options that are not given come from the environment (STABILIZER_HOST, STABILIZER_DATABASE_URL,
    STABILIZER_TOKENS, ...), then from the defaults. The database is migrated first.
    """
    given = {
        "host": host,
        "port": port,
        "database_url": database,
        "rules_file": rules,
        "token_file": token_file,
    }

    def announce(url: str) -> None:
        typer.echo(f"listening on {url}")
        if settings.is_loopback:
            page = f"python -m dashboard --collector {url}"
            typer.echo(f"for the dashboard, run `{page}` and open http://127.0.0.1:8050")
        if ready_file is not None:
            write_ready_file(ready_file, url)

    with exit_on_error():
        settings = load_collector_settings(
            **{name: value for name, value in given.items() if value is not None}
        )
        logging.basicConfig(level=settings.log_level.upper(), format=_LOG_FORMAT)
        logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)  # logs its imports
        with needs_extra("collector"):
            from stabilizer.collector.api.app import run_server  # noqa: PLC0415  an extra
            from stabilizer.web.server import write_ready_file  # noqa: PLC0415  an extra
        run_server(settings, SystemClock(), announce)
