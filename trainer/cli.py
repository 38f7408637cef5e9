"""`python -m trainer`: fit, export, data, config. Heavy libraries are loaded on demand."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import indent
from typing import Annotated, Any

import typer
from rich.console import Console

from trainer.config import (
    RunConfig,
    config_to_yaml,
    describe_fields,
    describe_presets,
    describe_recipes,
    load_config,
    preset_names,
    recipe_names,
)
from trainer.data_cli import data_app
from trainer.exits import errors_as_exit_status

app = typer.Typer(
    help="Train IDEFICS on interleaved pictures and text, watched by Stabilizer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Configurations.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")

Preset = Annotated[
    str | None,
    typer.Option(help=f"One of: {', '.join(preset_names())}. Without both: idefics-tiny."),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--config",
        help=f"A YAML file, or one of: {', '.join(recipe_names())}. Instead of --preset.",
    ),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override: a.b=value, repeatable.")]
DEFAULT_PRESET = "idefics-tiny"


@app.command()
def fit(  # noqa: PLR0913  one parameter per option of the command line
    *,
    preset: Preset = None,
    recipe: Recipe = None,
    data: Annotated[str | None, typer.Option(help="Folder of the corpus.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all random generators.")] = None,
    collector: Annotated[str | None, typer.Option(help="URL of a collector, or solo.")] = None,
    run: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    mode: Annotated[str | None, typer.Option(help="observe, propose or auto.")] = None,
    policy: Annotated[
        str | None, typer.Option(help="Rule file of the run, or a preset that has one.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="STABILIZER_TOKEN", help="Token for the collector.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Number of torch threads.")] = None,
    out: Annotated[str | None, typer.Option(help="Output folder.")] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="latest, or a checkpoint's folder; auto: the latest, if there is one.",
        ),
    ] = None,
    overrides: Set = None,
) -> None:
    """Train. Options set fields of the configuration and override --set."""
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
    with errors_as_exit_status():
        config = _load(preset, recipe, overrides, fields)
        _fit(config, token, resume)


@app.command()
def export(
    *,
    source: Annotated[
        Path, typer.Argument(help="A run's folder (its newest checkpoint), or a checkpoint's.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; model.pretrained.whole takes it.")],
) -> None:
    """Export the model of a checkpoint to safetensors and config.json, for transformers."""
    from trainer.run import export_model, silence_libraries  # noqa: PLC0415  loads torch and transformers

    with errors_as_exit_status():
        silence_libraries()
        folder = export_model(source, out)
        Console().print(f"{out}: the model of {folder}", highlight=False, soft_wrap=True)


@config_app.command("show")
def show(*, preset: Preset = None, recipe: Recipe = None, overrides: Set = None) -> None:
    """Print the complete configuration of a run as YAML."""
    with errors_as_exit_status():
        typer.echo(config_to_yaml(_load(preset, recipe, overrides, {})), nl=False)


@config_app.command("explain")
def explain(
    name: Annotated[
        str,
        typer.Argument(
            help="A field or section, such as optimizer.betas or model; all by default."
        ),
    ] = "",
) -> None:
    """Describe the fields of a configuration: name, type, default and meaning."""
    with errors_as_exit_status():
        for field in describe_fields(name):
            default = f" = {field.default}" if field.kind and field.default is not None else ""
            typer.echo(f"{field.name}: {field.kind or 'section'}{default}")
            typer.echo(indent(field.about, "    "))


@config_app.command("count")
def count(*, preset: Preset = None, recipe: Recipe = None, overrides: Set = None) -> None:
    """Print the number of parameters of a model by part, without allocating them."""
    with errors_as_exit_status():
        config = _load(preset, recipe, overrides, {})
        from trainer.module import at_equal_size, count_weights  # noqa: PLC0415  loads torch

        model = at_equal_size(config.model)
        sizes = count_weights(model)
        rows = [("total", sizes.total), ("trainable", sizes.trainable), *sizes.by_part.items()]
        for title, number in rows:
            typer.echo(f"{title:16} {number:18,}")


@config_app.command("list")
def list_all() -> None:
    """Print the presets (--preset) and recipes (--config) that come with the package."""
    for title, described in (("presets", describe_presets()), ("recipes", describe_recipes())):
        typer.echo(f"{title}:")
        width = max(map(len, described), default=0)
        for name, about in described.items():
            typer.echo(f"  {name:{width}}  {about}")


def _load(
    preset: str | None, recipe: str | None, overrides: list[str] | None, fields: dict[str, Any]
) -> RunConfig:
    if preset is None and recipe is None:
        preset = DEFAULT_PRESET
    return load_config(preset, overrides or [], fields, recipe=recipe)


def _fit(config: RunConfig, token: str | None, resume: str | None) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # training never uses the network by default
    from trainer.run import fit as train  # noqa: PLC0415  loads torch and transformers

    summary = train(config, token=token, resume=resume)
    if summary.rank:
        return
    heldout = "" if summary.heldout_loss is None else f", held out {summary.heldout_loss:.3f}"
    Console().print(
        f"{summary.steps} steps in {summary.seconds:.1f} s: loss {summary.final_loss:.3f}{heldout}",
        highlight=False,
    )
