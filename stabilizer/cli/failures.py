"""How a command ends when what a person gave it cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer

from stabilizer.errors import RuleFileError, StabilizerError

EXIT_UNUSABLE: Final = 2
"""Exit status for settings, files and databases that cannot be used, as for wrong options."""


@contextmanager
def told_plainly() -> Iterator[None]:
    """End with a message on standard error and status 2 instead of a traceback."""
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
    """Name the extra that a missing library belongs to.

    Args:
        extra: Of this project, for example `collector`.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "stabilizer":
            raise  # a mistake of ours, not of the installation
        typer.echo(f"error: {error.name} is not installed; install stabilizer[{extra}]", err=True)
        raise typer.Exit(EXIT_UNUSABLE) from error
