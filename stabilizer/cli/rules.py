"""`stabilizer rules`: check and show rule files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabilizer.cli.failures import EXIT_UNUSABLE, exit_on_error
from stabilizer.errors import ConfigurationError, RuleDefinitionError, RuleFileError
from stabilizer.rules.loader import RuleFile, default_rules, load_rules

app = typer.Typer(help="Rule files.", no_args_is_help=True)


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Rule files (YAML).")],
) -> None:
    """Check rule files; print one line `file:line: field: message` per error."""
    num_bad = 0
    for file in files:
        mistakes = _mistakes(file)
        num_bad += bool(mistakes)
        for mistake in mistakes:
            typer.echo(mistake)
    if num_bad:
        raise typer.Exit(EXIT_UNUSABLE)


def _mistakes(file: Path) -> list[str]:
    with exit_on_error():
        text = _read(file)
    try:
        rules = load_rules(text, str(file))
    except RuleFileError as group:
        return [str(error) for error in _leaves(group)]
    typer.echo(f"{file}: ok, {len(rules.rules)} rules, hash {rules.hash}")
    return []


def load_rule_file(file: Path | None) -> RuleFile:
    """Load a rule file; the shipped rules without one.

    Raises:
        ConfigurationError: It cannot be read.
        RuleFileError: It has mistakes.
    """
    return default_rules() if file is None else load_rules(_read(file), str(file))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: cannot be read: {error}") from error


def _leaves(group: ExceptionGroup[RuleDefinitionError]) -> list[RuleDefinitionError]:
    found: list[RuleDefinitionError] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, ExceptionGroup) else [error])
    return found


@app.command()
def show() -> None:
    """Print the default rule file, used by runs without rules of their own."""
    typer.echo(default_rules().text, nl=False)
