"""`stabilizer follow`: judges logs that are still growing."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from stabilizer.cli.backtest import FormatOption, PatternOption
from stabilizer.cli.failures import exit_on_error
from stabilizer.cli.import_logs import key_of
from stabilizer.cli.rules import load_rule_file
from stabilizer.cli.run_stores import CollectorOption, TokenOption, open_run_store
from stabilizer.clock import Clock, SystemClock
from stabilizer.logs.formats import choose_format
from stabilizer.replay.follow import Follower, LocalFollower, LogWatcher, UploadingFollower
from stabilizer.replay.upload import RunUploader


def follow(  # noqa: PLR0913, PLR0917  one argument for each option
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH|GLOB...", help="Logs, folders of event files, or patterns."),
    ],
    collector: CollectorOption = None,
    token: TokenOption = None,
    rules: Annotated[Path | None, typer.Option(help="Rule file; else the shipped rules.")] = None,
    every: Annotated[
        float, typer.Option(min=0.05, max=3600, help="Seconds between two polls of the logs.")
    ] = 1.0,
    until_idle: Annotated[
        float | None, typer.Option(min=0, help="End after so many seconds without a new line.")
    ] = None,
    log_format: FormatOption = None,
    pattern: PatternOption = None,
) -> None:
    """Judge logs that are still growing as live runs in mode `observe`, until Ctrl-C.

    With `--collector` the runs are sent there and judged there; else alerts and decisions are
    printed. No code of the job changes, and nothing is sent to it.
    """
    with exit_on_error(), ExitStack() as stack:
        rule_file = load_rule_file(rules)
        make: Callable[[str, Path], Follower]
        if collector is None:

            def make(name: str, _place: Path) -> Follower:
                return LocalFollower(name, rule_file, typer.echo)

        else:
            store = stack.enter_context(open_run_store(collector, token, None))
            policy = None if rules is None else rule_file.text

            def make(name: str, place: Path) -> Follower:
                now = SystemClock().now().timestamp()
                uploader = RunUploader(store, name, key_of(place), policy, now)
                return UploadingFollower(name, uploader, typer.echo)

        watcher = LogWatcher(paths, choose_format(log_format, pattern), make, typer.echo)
        watch(watcher, SystemClock(), time.sleep, every, until_idle)


def watch(
    watcher: LogWatcher,
    clock: Clock,
    sleep: Callable[[float], None],
    every: float,
    until_idle: float | None,
) -> None:
    """Poll until there is nothing new for long enough, or until Ctrl-C."""
    newest = clock.monotonic()
    try:
        while True:
            if watcher.poll():
                newest = clock.monotonic()
                continue  # there may be more
            if until_idle is not None and clock.monotonic() - newest >= until_idle:
                break
            sleep(every)
    except KeyboardInterrupt:
        pass
    watcher.finish()
