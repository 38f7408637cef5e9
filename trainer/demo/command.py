"""`python -m trainer demo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from stabilizer.errors import ConfigurationError, StabilizerError
from trainer.demo.options import DemoOptions
from trainer.demo.story import run_demo


def demo(
    *,
    exit_when_done: Annotated[
        bool, typer.Option("--exit", help="End the collector when the story is told.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="The JSON report; HTML and PNG go beside it."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Start of all randomness, from 0.")] = 0,
    steps: Annotated[int, typer.Option(help="Optimizer steps of each arm.")] = DemoOptions.steps,
    out: Annotated[Path, typer.Option(help="Folder for everything else.")] = Path("out/demo"),
) -> None:
    """Train, disturb, see, rewind, learn on: the whole loop on this machine, told live.

    Without --exit, on a terminal, page and collector stay for you to look around until Ctrl-C.
    """
    try:
        options = DemoOptions(
            out=out.resolve(),
            seed=seed,
            steps=steps,
            report=report,
            # Without a terminal nobody could press Ctrl-C.
            exit_when_done=exit_when_done or not sys.stdin.isatty(),
        )
        code = run_demo(options)
    except ConfigurationError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    except (StabilizerError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.echo("Ended before the story was told; the processes are gone.", err=True)
        raise typer.Exit(130) from None
    raise typer.Exit(code)
