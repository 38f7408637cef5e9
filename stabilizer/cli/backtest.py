"""`stabilizer backtest`: what the rules would have done on recorded runs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from typing import Annotated

import typer
from pydantic_core import to_json

from stabilizer.cli.failures import exit_on_error
from stabilizer.cli.rules import load_rule_file
from stabilizer.cli.stored_runs import database_url, open_repositories, stored_names, stored_steps
from stabilizer.errors import ConfigurationError
from stabilizer.logs.formats import FORMATS, LogFormat, LogSource, choose_format, find_logs
from stabilizer.logs.rows import LogProblems
from stabilizer.logs.stream import LogStep, LogStream, steps_of
from stabilizer.replay.job import replay
from stabilizer.replay.report import LossTrace, ReportedRun, render_report
from stabilizer.rules.loader import RuleFile

FormatOption = Annotated[
    str | None, typer.Option("--format", help=f"Of {', '.join(FORMATS)}; else it is found out.")
]
PatternOption = Annotated[
    str | None,
    typer.Option(
        help="Regular expression for lines of text, with groups: (?P<step>...), (?P<loss>...)."
    ),
]


def backtest(  # noqa: PLR0913, PLR0917  one argument for each option
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Logs, folders of logs, or databases (URL, file)."),
    ],
    rules: Annotated[Path | None, typer.Option(help="Rule file; else the shipped rules.")] = None,
    proposals: Annotated[
        Path | None, typer.Option(help="Write run,step,kind of every command to this CSV file.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a report to this HTML file.")] = None,
    run: Annotated[str | None, typer.Option(help="Id or name of a run in a database.")] = None,
    log_format: FormatOption = None,
    pattern: PatternOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a run.")] = False,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Logs judged at the same time.")] = 1,
) -> None:
    """Show what the rules would have done on recorded runs, in mode `auto`.

    The rules see what a job would have sent, in the same order, and are evaluated by the same code.
    A replay cannot change the past: a command counts as applied at once, and the data continue
    as they were.
    """
    with exit_on_error():
        rule_file = load_rule_file(rules)
        chosen = choose_format(log_format, pattern)
        judged = []
        for reported in _judge_all(paths, chosen, run, rule_file, jobs):
            typer.echo(as_json_line(reported) if as_json else as_text(reported))
            judged.append(reported)
        if proposals is not None:
            write_proposals(proposals, judged)
        if report is not None:
            _write(report, render_report(judged, rule_file.file))


def _judge_all(
    paths: Iterable[str], chosen: LogFormat | None, run: str | None, rules: RuleFile, jobs: int
) -> Iterator[ReportedRun]:
    urls = {path: database_url(path) for path in paths}
    for url in urls.values():
        if url is None:
            continue
        with open_repositories(url) as repositories:
            for run_id, name in stored_names(repositories, run).items():
                yield _judge(name, stored_steps(repositories, run_id), rules)
    logs = [Path(path) for path, url in urls.items() if url is None]
    sources = find_logs(logs, chosen)
    if logs and not sources:
        raise ConfigurationError(f"no log that can be read in {', '.join(map(str, logs))}")
    if min(jobs, len(sources)) <= 1:
        yield from (_judge_log(source, rules) for source in sources)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(_judge_log, sources, repeat(rules))


def _judge_log(source: LogSource, rules: RuleFile) -> ReportedRun:
    problems, stream = LogProblems(), LogStream()
    return _judge(source.name, steps_of(source.rows(problems), stream), rules, problems, stream)


def _judge(
    name: str,
    steps: Iterator[LogStep],
    rules: RuleFile,
    problems: LogProblems | None = None,
    stream: LogStream | None = None,
) -> ReportedRun:
    trace = LossTrace()
    result = replay(trace.watch(steps), rules)
    problems = problems or LogProblems()
    if stream is not None:
        problems.add(stream.problems)
    return ReportedRun(name, result, trace, str(problems))


def as_text(run: ReportedRun) -> str:
    """Describe a run in a few lines."""
    result = run.result
    steps = f"{result.rows} steps from {result.first_step} to {result.last_step}"
    if not result.rows:
        steps = "no step that can be read"
    counts = f"{len(result.alerts)} alerts, {len(result.proposals)} commands"
    lines = [f"{run.name}: {steps}, {counts}"]
    if run.problems:
        lines.append(f"  in the log: {run.problems}")
    lines += [
        f"  step {p.step}: {p.kind}: {p.text} ({p.reason}; {', '.join(p.rules)})"
        for p in result.proposals
    ]
    lines += [f"  rule {h.name} failed: {h.last_error}" for h in result.health if not h.ok]
    return "\n".join(lines)


def as_json_line(run: ReportedRun) -> str:
    """Describe a run as one JSON object; NaN and Inf are texts."""
    content = {"run": run.name, "problems": run.problems, **asdict(run.result)}
    return to_json(content, inf_nan_mode="strings").decode()


def write_proposals(path: Path, judged: Iterable[ReportedRun]) -> None:
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


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
