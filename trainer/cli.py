"""`python -m trainer`: fit, data make, config show. Heavy libraries load when they are needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stabilizer.errors import ConfigurationError, StabilizerError
from trainer.config import RunConfig, config_to_yaml, load_config, preset_names

app = typer.Typer(
    help="Train IDEFICS on interleaved pictures and text, watched by Stabilizer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Corpora.", no_args_is_help=True)
config_app = typer.Typer(help="Configurations.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")

Preset = Annotated[str, typer.Option(help=f"One of: {', '.join(preset_names())}.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override: a.b=value, repeatable.")]
DEFAULT_PRESET = "idefics-tiny"


@app.command()
def fit(  # noqa: PLR0913  one parameter per option of the command line
    *,
    preset: Preset = DEFAULT_PRESET,
    data: Annotated[str | None, typer.Option(help="Folder of the corpus.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Start of all randomness.")] = None,
    collector: Annotated[str | None, typer.Option(help="Address of a collector.")] = None,
    run: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    mode: Annotated[str | None, typer.Option(help="observe, propose or auto.")] = None,
    policy: Annotated[str | None, typer.Option(help="Rule file of this run.")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="STABILIZER_TOKEN", help="For the collector.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Torch threads.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder for losses and summary.")] = None,
    overrides: Set = None,
) -> None:
    """Train; options stand for fields of the configuration and win over --set."""
    given = {
        "data.folder": data,
        "training.steps": steps,
        "training.seed": seed,
        "training.threads": threads,
        "training.out": out,
        "monitor.collector": collector,
        "monitor.run": run,
        "monitor.mode": mode,
        "monitor.policy": policy,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    with _errors_as_exit_status():
        config = load_config(preset, overrides or [], fields)
        _fit(config, token)


@data_app.command("make")
def make(
    *,
    out: Annotated[Path, typer.Option(help="Folder to create.")],
    documents: Annotated[int, typer.Option(help="Web documents; half as many pairs come too.")] = (
        4000
    ),
    seed: Annotated[int, typer.Option(help="Start of all random choices.")] = 0,
) -> None:
    """Write a small corpus of digit pictures and text about them, and train its tokenizer."""
    from trainer.data.making import make_corpus  # noqa: PLC0415  loads scikit-learn

    with _errors_as_exit_status():
        summary = make_corpus(out, documents=documents, seed=seed)
        counts = ", ".join(f"{count} {name}" for name, count in summary.documents.items())
        Console().print(f"{out}: {counts}; {summary.vocabulary_size} tokens", highlight=False)


@config_app.command("show")
def show(*, preset: Preset = DEFAULT_PRESET, overrides: Set = None) -> None:
    """Print the whole configuration of a run as YAML."""
    with _errors_as_exit_status():
        typer.echo(config_to_yaml(load_config(preset, overrides or [])), nl=False)


def _fit(config: RunConfig, token: str | None) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # local training never asks the network
    from trainer.run import fit as train  # noqa: PLC0415  loads torch and transformers

    summary = train(config, token=token)
    heldout = "" if summary.heldout_loss is None else f", held out {summary.heldout_loss:.3f}"
    Console().print(
        f"{summary.steps} steps in {summary.seconds:.1f} s: loss {summary.final_loss:.3f}{heldout}",
        highlight=False,
    )


@contextmanager
def _errors_as_exit_status() -> Iterator[None]:
    """2 for what a person can correct in the configuration, 1 for all else; never a traceback."""
    try:
        yield
    except ConfigurationError as error:
        for line in str(error).splitlines():  # a line per mistake
            typer.echo(f"error: {line}", err=True)
        raise typer.Exit(2) from error
    except (StabilizerError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
