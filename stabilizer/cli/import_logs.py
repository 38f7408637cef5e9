"""`stabilizer import`: stores logs as runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabilizer.cli.backtest import FormatOption, PatternOption
from stabilizer.cli.failures import exit_on_error
from stabilizer.cli.rules import load_rule_file
from stabilizer.cli.run_stores import CollectorOption, TokenOption, open_run_store
from stabilizer.clock import SystemClock
from stabilizer.errors import ConfigurationError
from stabilizer.logs.formats import LogSource, choose_format, find_logs
from stabilizer.logs.rows import LogProblems
from stabilizer.logs.stream import LogStream, steps_of
from stabilizer.replay.upload import RunStore, RunUploader

_MAX_KEY = 200


def import_logs(  # noqa: PLR0913, PLR0917  one argument for each option
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Logs, or folders of logs.")
    ],
    collector: CollectorOption = None,
    token: TokenOption = None,
    database: Annotated[
        str | None,
        typer.Option(help="URL of a database without a collector; else STABILIZER_DATABASE_URL."),
    ] = None,
    rules: Annotated[
        Path | None, typer.Option(help="Rule file of the runs; else that of the collector.")
    ] = None,
    log_format: FormatOption = None,
    pattern: PatternOption = None,
) -> None:
    """Store logs as finished runs of a collector, judged in mode `observe`.

    The same log again changes nothing; a log that has grown adds what is new.
    """
    with exit_on_error():
        policy = None if rules is None else load_rule_file(rules).text
        sources = find_logs(paths, choose_format(log_format, pattern))
        if not sources:
            raise ConfigurationError(f"no log that can be read in {', '.join(map(str, paths))}")
        with open_run_store(collector, token, database) as store:
            for source in sources:
                typer.echo(_import(source, store, policy))


def _import(source: LogSource, store: RunStore, policy: str | None) -> str:
    problems, stream = LogProblems(), LogStream()
    now = SystemClock().now().timestamp()
    uploader = RunUploader(store, source.name, key_of(source.paths[0]), policy, now)
    for step in steps_of(source.rows(problems), stream):
        uploader.put(step)
        if uploader.is_full:
            uploader.flush()
    uploader.finish()
    problems.add(stream.problems)
    if uploader.run_id is None:
        return f"{source.name}: no step to store"
    unread = f"; in the log: {problems}" if str(problems) else ""
    return f"{source.name}: run {uploader.run_id}, {uploader.num_stored} new steps{unread}"


def key_of(path: Path) -> str:
    """Return the key of a log's run: the path, so that the same file is the same run."""
    return str(path.absolute())[-_MAX_KEY:]
