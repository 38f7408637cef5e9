"""Errors of commands as messages and exit statuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer

from stabilizer.errors import RuleFileError, StabilizerError

EXIT_UNUSABLE: Final = 2
"""Exit status for invalid settings, files and databases, as for invalid options."""


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Exit with a message on standard error and status 2 instead of a traceback."""
    try:
        yield
    except RuleFileError as group:
        for error in group.exceptions:
            typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_UNUSABLE) from group
    except StabilizerError as error:
        for line in error.message.splitlines():
            typer.echo(f"error: {line}", err=True)
        raise typer.Exit(EXIT_UNUSABLE) from error


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Exit with a message that names the extra to install if a library is missing.

    Args:
        extra: Extra of this project, for example `collector`.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "stabilizer":
            raise  # a bug, not an incomplete installation
        typer.echo(f"error: {error.name} is not installed; install stabilizer[{extra}]", err=True)
        raise typer.Exit(EXIT_UNUSABLE) from error
