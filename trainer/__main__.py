"""`python -m trainer`: the commands of the job, and the demo that starts them as processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabilizer.errors import StabilizerError
from trainer.cli import app
from trainer.demo.options import DemoOptions
from trainer.demo.story import run_demo


@app.command()
def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for database, data and logs.")] = Path(
        "out/demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of data, weights and disturbances.")] = 0,
    steps: Annotated[int, typer.Option(min=200, help="Optimizer steps of each job.")] = 500,
    report: Annotated[Path | None, typer.Option(help="Where the JSON report goes.")] = None,
    leave: Annotated[
        bool, typer.Option("--exit", help="End the collector when the story is told.")
    ] = False,
) -> None:
    """Diverge, be seen, be rewound and learn on: three jobs and a collector, told live."""
    options = DemoOptions(out=out, seed=seed, steps=steps, report=report, exit_when_done=leave)
    try:
        code = run_demo(options)
    except StabilizerError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
