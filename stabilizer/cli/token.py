"""`stabilizer token`: secrets that let callers in."""

from __future__ import annotations

import secrets

import typer

app = typer.Typer(help="Tokens for collectors beyond loopback.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `new` a command of its own while it is the only one."""


@app.command()
def new() -> None:
    """Make a token. It is shown once; put it into a token file or STABILIZER_TOKENS."""
    typer.echo(secrets.token_urlsafe(32))  # 256 bits
