"""`stabilizer token`: bearer tokens."""

from __future__ import annotations

import secrets

import typer

app = typer.Typer(help="Tokens for collectors beyond loopback.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `new` a subcommand although it is the only one."""


@app.command()
def new() -> None:
    """Create a token and print it; put it into a token file or STABILIZER_TOKENS."""
    typer.echo(secrets.token_urlsafe(32))  # 256 bits
