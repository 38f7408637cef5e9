"""`stabilizer backtest`: what the rules would have done on recorded runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from stabilizer.cli.failures import exit_on_error
from stabilizer.cli.rules import load_rule_file
from stabilizer.errors import ConfigurationError
from stabilizer.logs.formats import read_rows
from stabilizer.logs.rows import LogProblems
from stabilizer.logs.stream import LogStream, steps_of
from stabilizer.replay.job import ReplayResult, replay
from stabilizer.rules.loader import RuleFile


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """A run, what the rules say about it, and what could not be read."""

    name: str
    result: ReplayResult
    problems: LogProblems


def backtest(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Logs of runs.")],
    rules: Annotated[Path | None, typer.Option(help="Rule file; else the shipped rules.")] = None,
    proposals: Annotated[
        Path | None, typer.Option(help="Write run,step,kind of every command to this CSV file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a run.")] = False,
) -> None:
    """Show what the rules would have done on recorded runs, in mode `auto`.

    The rules see what a job would have sent, in the same order, and are evaluated by the same code.
    """
    with exit_on_error():
        rule_file = load_rule_file(rules)
        judged = []
        for path in paths:
            run = judge_file(path, rule_file)
            judged.append(run)
            typer.echo(as_json_line(run) if as_json else as_text(run))
        if proposals is not None:
            write_proposals(proposals, judged)


def judge_file(path: Path, rules: RuleFile) -> JudgedRun:
    """Judge one log."""
    problems, stream = LogProblems(), LogStream()
    result = replay(steps_of(read_rows(path, problems=problems), stream), rules)
    problems.add(stream.problems)
    return JudgedRun(path.stem, result, problems)


def as_text(run: JudgedRun) -> str:
    """Describe a run in a few lines."""
    result = run.result
    steps = f"{result.rows} steps from {result.first_step} to {result.last_step}"
    counts = f"{len(result.alerts)} alerts, {len(result.proposals)} commands"
    lines = [f"{run.name}: {steps}, {counts}"]
    if str(run.problems):
        lines.append(f"  in the log: {run.problems}")
    lines += [
        f"  step {p.step}: {p.kind}: {p.text} ({p.reason}; {', '.join(p.rules)})"
        for p in result.proposals
    ]
    lines += [f"  rule {h.name} failed: {h.last_error}" for h in result.health if not h.ok]
    return "\n".join(lines)


def as_json_line(run: JudgedRun) -> str:
    """Describe a run as one JSON object."""
    return json.dumps({"run": run.name, "problems": asdict(run.problems), **asdict(run.result)})


def write_proposals(path: Path, judged: Iterable[JudgedRun]) -> None:
    """Write every command, as the scorers of labelled runs read it.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    try:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["run", "step", "kind"])
            for run in judged:
                writer.writerows([run.name, p.step, p.kind] for p in run.result.proposals)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
