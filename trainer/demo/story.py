"""The demo from start to end, and its command."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from stabilizer.clock import Clock, SystemClock
from stabilizer.errors import ConfigurationError, StabilizerError
from stabilizer.protocol.runs import RunState
from trainer import presets
from trainer.config import load_config
from trainer.demo.console import StoryTeller
from trainer.demo.options import ARMS, Arm, DemoOptions
from trainer.demo.processes import Process, Processes, ProcessFailedError
from trainer.demo.report import ArmOutcome, build_report, follow, verdict
from trainer.demo.watch import ArmWatch, DemoClient, Event

_LOOK_SECONDS: Final = 0.5
_PROGRESS_SECONDS: Final = 15.0
_ENDED: Final = (RunState.FINISHED, RunState.FAILED)


def run_demo(options: DemoOptions, *, clock: Clock | None = None) -> int:
    """Run the demo; return the exit code: 0 if every check passed."""
    clock = clock or SystemClock()
    began = clock.monotonic()
    teller = StoryTeller()
    options.out.mkdir(parents=True, exist_ok=True)
    # Threads: three jobs share the machine; two threads each would fight for its cores.
    environment = {
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        # A spool of its own: do not send what an interrupted demo has left.
        "STABILIZER_SPOOL_DIRECTORY": str(options.out / "spool"),
    }
    shutil.rmtree(options.out / "spool", ignore_errors=True)
    with Processes(options.out / "logs", environment, clock) as processes:
        url = _start_collector(options, processes)
        page = _start_dashboard(options, processes, url)
        _make_data(options, processes)
        teller.opening(options, url, page)
        jobs = {arm.name: _start_job(arm, options, processes, url) for arm in ARMS}
        with DemoClient(url) as client:
            _watch(client, jobs, options, teller, clock)
            outcomes = {arm.name: _outcome(client, arm, options) for arm in ARMS}
        code = _conclude(options, outcomes, clock.monotonic() - began, teller)
        if not options.exit_when_done:
            _leave_open(teller, page)
    return code


def _start_collector(options: DemoOptions, processes: Processes) -> str:
    ready = options.out / "collector.url"
    ready.unlink(missing_ok=True)
    database = options.out / "stabilizer.db"
    for old in options.out.glob("stabilizer.db*"):
        old.unlink()
    collector = processes.start(
        "collector",
        "stabilizer",
        ["serve", "--port", "0", "--database", f"sqlite:///{database}", "--ready-file", str(ready)],
    )
    return processes.wait_for_file(collector, ready, timeout=60.0)


def _start_dashboard(options: DemoOptions, processes: Processes, url: str) -> str:
    ready = options.out / "dashboard.url"
    ready.unlink(missing_ok=True)
    arguments = ["--collector", url, "--port", "0", "--ready-file", str(ready)]
    dashboard = processes.start("dashboard", "dashboard", arguments)
    return processes.wait_for_file(dashboard, ready, timeout=60.0)


def _make_data(options: DemoOptions, processes: Processes) -> None:
    arguments = ["data", "make", "--out", str(options.out / "data"), "--seed", str(options.seed)]
    processes.run("data", "trainer", arguments, timeout=120.0)


def policy_file(preset: str) -> Path:
    """Path of the rules and the policy that belong to a preset."""
    return Path(presets.__file__).parent / f"{preset}.policy.yaml"


def job_arguments(arm: Arm, options: DemoOptions, url: str) -> list[str]:
    """Return the command line of one arm, as a user would type it."""
    arguments = ["fit", "--preset", options.preset, "--data", str(options.out / "data")]
    arguments += ["--steps", str(options.steps), "--seed", str(options.seed)]
    arguments += ["--collector", url, "--run", f"demo-{options.seed}-{arm.name}"]
    arguments += ["--mode", arm.mode, "--policy", str(policy_file(options.preset))]
    arguments += ["--out", str(options.out / arm.name)]
    if arm.disturbed:
        for setting in _faults(options):
            arguments += ["--set", setting]
    return arguments


def _faults(options: DemoOptions) -> tuple[str, ...]:
    """Return both disturbances as settings; bad data is given by its position."""
    config = load_config(options.preset)
    samples_per_step = config.data.batch_size * config.training.accumulate
    disturbances = options.disturbances
    return (
        f"faults.bad_documents.first_sample={disturbances.bad_from * samples_per_step}",
        f"faults.bad_documents.samples={disturbances.bad_steps * samples_per_step}",
        f"faults.lr_restart.step={disturbances.restart_at}",
        f"faults.lr_restart.factor={disturbances.restart_factor}",
    )


def _start_job(arm: Arm, options: DemoOptions, processes: Processes, url: str) -> Process:
    return processes.start(arm.name, "trainer", job_arguments(arm, options, url))


def _watch(
    client: DemoClient,
    jobs: Mapping[str, Process],
    options: DemoOptions,
    teller: StoryTeller,
    clock: Clock,
) -> None:
    watches = {arm.name: ArmWatch(arm.name, _ahead(arm, options)) for arm in ARMS}
    began = told_at = clock.monotonic()
    while any(job.is_running for job in jobs.values()):
        if clock.monotonic() - began > options.timeout_seconds:
            raise StabilizerError("the demo took too long", code="demo_timeout")
        _raise_if_failed(jobs)
        steps = _look(client, watches, options, teller)
        if steps and clock.monotonic() - told_at > _PROGRESS_SECONDS:
            told_at = clock.monotonic()
            teller.progress(steps, options.steps)
        time.sleep(_LOOK_SECONDS)
    _raise_if_failed(jobs)
    _look(client, watches, options, teller)


def _ahead(arm: Arm, options: DemoOptions) -> list[tuple[int, str]]:
    disturbances = options.disturbances
    if not arm.disturbed:
        return []
    times = f"{disturbances.restart_factor:g} times"
    return [
        (disturbances.bad_from, f"the next {disturbances.bad_steps} steps read bad documents"),
        (disturbances.restart_at, f"the learning-rate schedule restarts {times} too high"),
    ]


def _raise_if_failed(jobs: Mapping[str, Process]) -> None:
    for job in jobs.values():
        if not job.is_running and job.popen.returncode != 0:
            raise job.failure()


def _look(
    client: DemoClient,
    watches: Mapping[str, ArmWatch],
    options: DemoOptions,
    teller: StoryTeller,
) -> dict[str, int]:
    """Print new events; return the step of every arm that the collector knows."""
    steps: dict[str, int] = {}
    events: list[Event] = []
    for name, watch in watches.items():
        run = client.run_named(f"demo-{options.seed}-{name}")
        if run is not None:
            steps[name] = run.step
            events += watch.news(
                run.step,
                client.alerts(run.id),
                client.incidents(run.id),
                client.commands(run.id),
            )
    for event in events:
        teller.report(event)
    return steps


def _outcome(client: DemoClient, arm: Arm, options: DemoOptions) -> ArmOutcome:
    run = client.run_named(f"demo-{options.seed}-{arm.name}")
    if run is None or run.state not in _ENDED:
        raise ProcessFailedError(f"the collector does not know how the arm {arm.name} ended")
    curve = follow(run.attempts, client.series(run.id, ["loss"]))
    return ArmOutcome(
        curve=curve,
        final_loss=curve.final(options.final_steps),
        alerts=client.alerts(run.id),
        incidents=client.incidents(run.id),
        commands=client.commands(run.id),
    )


def _conclude(
    options: DemoOptions, outcomes: Mapping[str, ArmOutcome], seconds: float, teller: StoryTeller
) -> int:
    from trainer.demo.plot import draw, draw_svg, write_page  # noqa: PLC0415  loads matplotlib

    checks = verdict(outcomes, options.disturbances)
    report = build_report(
        outcomes, checks, seed=options.seed, seconds=seconds, final_steps=options.final_steps
    )
    path = options.report or options.out / "report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, allow_nan=False))
    plot = path.with_suffix(".png")
    draw(outcomes, options.disturbances, plot)
    page = path.with_suffix(".html")
    write_page(page, report, checks, outcomes, draw_svg(outcomes, options.disturbances))
    teller.closing(report, checks, str(page))
    return 0 if all(check.passed for check in checks) else 1


def _leave_open(teller: StoryTeller, page: str) -> None:
    teller.note(f"The page is still there: {page}. Ctrl-C ends it and the collector.")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        teller.note("Ended.")


def demo(
    *,
    exit_when_done: Annotated[
        bool, typer.Option("--exit", help="Stop the collector when the demo is over.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="The JSON report; HTML and PNG go beside it."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Start of all randomness, from 0.")] = 0,
    steps: Annotated[int, typer.Option(help="Optimizer steps of each arm.")] = DemoOptions.steps,
    out: Annotated[Path, typer.Option(help="Folder for everything else.")] = Path("out/demo"),
) -> None:
    """Train, disturb, see, rewind, learn on: the whole loop on this machine, reported live.

    Without --exit, on a terminal, page and collector stay for you to look around until Ctrl-C.
    """
    try:
        options = DemoOptions(
            out=out.resolve(),
            seed=seed,
            steps=steps,
            report=report,
            # Without a terminal there is no Ctrl-C.
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
        typer.echo("Stopped before the end; the processes are gone.", err=True)
        raise typer.Exit(130) from None
    raise typer.Exit(code)
