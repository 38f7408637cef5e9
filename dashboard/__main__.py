"""`python -m dashboard`: serve the pages."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from dashboard.app import run_server
from dashboard.settings import load_dashboard_settings
from stabilizer.clock import SystemClock
from stabilizer.errors import StabilizerError
from stabilizer.web.server import write_ready_file

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def serve(
    *,
    collector: Annotated[str | None, typer.Option(help="URL of the collector.")] = None,
    host: Annotated[str | None, typer.Option(help="Name or address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 picks a free one.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with a collector token; on loopback only.")
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="File to write the URL to once the dashboard is ready.")
    ] = None,
) -> None:
    """Serve the dashboard until SIGTERM or Ctrl-C.

    Options that are not given come from the environment (DASHBOARD_COLLECTOR_URL, DASHBOARD_HOST,
    ...), else from the defaults. Beyond loopback users sign in with a collector token.
    """

    def announce(url: str) -> None:
        if ready_file is not None:
            write_ready_file(ready_file, url)
        typer.echo(f"dashboard on {url}")

    given = {"collector_url": collector, "host": host, "port": port, "token_file": token_file}
    try:
        settings = load_dashboard_settings(
            **{name: value for name, value in given.items() if value is not None}
        )
        logging.basicConfig(level=settings.log_level.upper(), format=_LOG_FORMAT)
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request
        run_server(settings, SystemClock(), announce)
    except StabilizerError as error:
        for line in str(error).splitlines():  # one line for each mistake
            typer.echo(f"error: {line}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    typer.run(serve)
