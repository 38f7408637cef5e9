"""`python -m trainer data`: make, inspect, skipped, quarantine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from stabilizer.errors import ConfigurationError
from trainer.exits import errors_as_exit_status

if TYPE_CHECKING:
    from trainer.inspection import Occurrence, RunFolder, Window

data_app = typer.Typer(help="Corpora, and the documents that runs have read.", no_args_is_help=True)

Run = Annotated[Path | None, typer.Option("--run", help="Output folder of a run (training.out).")]
Recipe = Annotated[
    str | None, typer.Option("--config", help="A configuration instead of a run: file or recipe.")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override: a.b=value, repeatable.")]
By = Annotated[Literal["step", "sample"], typer.Option("--by", help="Unit of the window.")]
Attempt = Annotated[
    int | None, typer.Option(help="Show this attempt; default: the newest of each step.")
]


@data_app.command("make")
def make(
    *,
    out: Annotated[Path, typer.Option(help="Folder to create.")],
    documents: Annotated[int, typer.Option(help="Web documents; half as many pairs come too.")] = (
        4000
    ),
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 0,
    pairs_format: Annotated[
        Literal["parquet", "webdataset"], typer.Option(help="How image-text pairs are written.")
    ] = "parquet",
    conversations: Annotated[int, typer.Option(help="Conversations, for instruction tuning.")] = 0,
) -> None:
    """Write a small corpus of digit pictures with texts, and train its tokenizer."""
    from trainer.data.making import make_corpus  # noqa: PLC0415  loads scikit-learn

    with errors_as_exit_status():
        summary = make_corpus(
            out,
            documents=documents,
            seed=seed,
            pairs_format=pairs_format,
            conversations=conversations,
        )
        counts = ", ".join(f"{count} {name}" for name, count in summary.documents.items())
        _say(f"{out}: {counts}; {summary.vocabulary_size} tokens")


@data_app.command("inspect")
def inspect(  # noqa: PLR0913  one parameter per option of the command line
    *,
    window: Annotated[str, typer.Option(help="FROM:TO, without TO.")],
    out: Annotated[Path, typer.Option(help="Folder to write the report to.")],
    run: Run = None,
    recipe: Recipe = None,
    overrides: Set = None,
    by: By = "step",
    attempt: Attempt = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Compute losses with the weights of this checkpoint.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Documents on the page.")] = 200,
) -> None:
    """Report the documents of a window: losses, repetition, verdicts of filters, pictures."""
    from trainer.inspection import parse_window, write_report  # noqa: PLC0415  loads torch
    from trainer.inspection.findings import Inspector, LossModel  # noqa: PLC0415

    with errors_as_exit_status():
        wanted = parse_window(window, by)
        folder = _open(run, recipe, overrides)
        occurrences = _found(folder, wanted, attempt)
        tokenizer = folder.tokenizer()
        losses = checkpoint and LossModel(folder.config, tokenizer, checkpoint)
        inspector = Inspector(folder.reader(), tokenizer, folder.config.data, losses or None)
        title = f"{run or recipe}: {wanted}"
        remark = f"{folder.remark()} {folder.gaps(wanted, attempt=attempt)}".strip()
        findings = inspector.inspect(occurrences)
        facts = write_report(out, title, findings, limit=limit, remark=remark)
        if remark:
            _say(remark)
        for name, value in facts.items():
            _say(f"{name}: {value}")
        _say(str(out / "index.html"))


@data_app.command("skipped")
def skipped(*, run: Run = None, overrides: Set = None) -> None:
    """List the windows of the stream that a run skipped after a rewind."""
    with errors_as_exit_status():
        windows = _open(run, None, overrides).skipped_windows()
        for each in windows:
            _say(
                f"samples {each.start}:{each.end} skipped before step {each.step} of attempt "
                f"{each.attempt}"
            )
        if not windows:
            _say("nothing was skipped, as far as the ledger of this run goes back")


@data_app.command("quarantine")
def quarantine(  # noqa: PLR0913  one parameter per option of the command line
    file: Annotated[Path, typer.Argument(help="File to append to; set it as data.quarantine.")],
    *,
    sample_id: Annotated[
        list[str] | None, typer.Option(help="A document by its id, repeatable.")
    ] = None,
    window: Annotated[str | None, typer.Option(help="All documents of FROM:TO.")] = None,
    run: Run = None,
    recipe: Recipe = None,
    overrides: Set = None,
    by: By = "sample",
    attempt: Attempt = None,
    remark: Annotated[str, typer.Option(help="Comment for readers of the file.")] = "",
) -> None:
    """Exclude documents from future runs, and from this one once it is resumed."""
    from trainer.data.selection import add_to_quarantine  # noqa: PLC0415  loads torch
    from trainer.inspection import parse_window  # noqa: PLC0415  loads torch

    with errors_as_exit_status():
        names = list(sample_id or [])
        if window is not None:
            folder = _open(run, recipe, overrides)
            wanted = parse_window(window, by)
            names += [each.sample_id for each in _found(folder, wanted, attempt)]
            gaps = folder.gaps(wanted, attempt=attempt)
            if gaps:
                _say(gaps)
        if not names:
            raise ConfigurationError("--sample-id: allowed: at least one, or a --window")
        new = add_to_quarantine(file, names, remark=remark or f"window {window}")
        _say(f"{file}: {len(new)} documents added; use it with --set data.quarantine={file}")


def _open(run: Path | None, recipe: str | None, overrides: list[str] | None) -> RunFolder:
    from trainer.config import load_config  # noqa: PLC0415  not for `data make`
    from trainer.inspection import RunFolder  # noqa: PLC0415  loads torch

    if (run is None) == (recipe is None):
        raise ConfigurationError("--run: allowed: either the folder of a run, or --config")
    if run is not None:
        return RunFolder.open(run, overrides or [])
    return RunFolder(load_config(recipe=recipe, overrides=overrides or []), None)


def _found(folder: RunFolder, window: Window, attempt: int | None) -> list[Occurrence]:
    return folder.occurrences(window, attempt=attempt)


def _say(text: str) -> None:
    Console(soft_wrap=True).print(text, highlight=False, markup=False)
