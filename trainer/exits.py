"""Exit statuses of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from stabilizer.errors import ConfigurationError, StabilizerError


@contextmanager
def errors_as_exit_status() -> Iterator[None]:
    """Exit with 2 on configuration errors and 1 on all others, without a traceback."""
    try:
        yield
    except ConfigurationError as error:
        for line in str(error).splitlines():  # one line per error
            typer.echo(f"error: {line}", err=True)
        raise typer.Exit(2) from error
    except (StabilizerError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
