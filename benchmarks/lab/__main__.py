"""Generate the laboratory: `python -m benchmarks.lab [--out build/lab] [--table]`.

A killed command continues where it was: what is stored is not trained again. One process, one
thread; every run is seeded. `--table` trains nothing and prints what the stored runs say.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.lab.export import event_of, export_run, write_events
from benchmarks.lab.faults import FAULTS
from benchmarks.lab.groups import LabRun, run_group
from benchmarks.lab.lookalikes import LOOKALIKES
from benchmarks.lab.members import Change
from benchmarks.lab.oracle import ACTIONS, GRID
from benchmarks.lab.outcomes import rescue_table, summarise, write_table
from benchmarks.lab.plain import run_plain
from benchmarks.lab.plan import ROUNDS, Group, plan
from benchmarks.lab.storage import iterate, list_runs, load_run, path_of, save_run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/lab"), help="folder of the runs")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="groups of each family")
    parser.add_argument("--steps", type=int, default=360, help="steps of a run")
    parser.add_argument("--family", help="only this family")
    parser.add_argument(
        "--plain",
        action="store_true",
        help="every change of every group, without modules and forks: enough for `make fit-risk`",
    )
    parser.add_argument("--summary", type=Path, help="also write the table of outcomes here")
    parser.add_argument("--export", type=Path, help="also write labelled logs (CSV) here")
    parser.add_argument("--split", choices=("fit", "test"), help="export only this split")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if not options.table:
        for group in plan(options.rounds, options.steps):
            if options.family in (None, group.setting.family):
                generate(options.out, group, plain=options.plain)
    report(options.out, options.summary)
    if options.export is not None:
        export(options.out, options.export, options.split)
    return 0


def generate(folder: Path, group: Group, *, plain: bool = False) -> None:
    """Train and store the runs of a group that are not stored yet."""
    if plain:
        group = replace(group, kinds=(*FAULTS, *LOOKALIKES))
    names = [f"{group.setting.name}_{kind.name}" for kind in (Change, *group.kinds)]
    done = folder / "groups" / f"{group.setting.name}_{crc32(' '.join(names).encode()):08x}"
    if done.exists():
        return
    started, cpu = time.perf_counter(), time.process_time()
    count = 0

    def is_missing(name: str) -> bool:
        return not path_of(folder, name).exists()

    if plain:
        runs = run_plain(group.setting, group.kinds, group.onset)
    else:
        runs = run_group(group.setting, group.kinds, group.onset, is_missing)
    for run in runs:
        save_run(folder, run, facts_of(run, group))
        count += 1
    done.parent.mkdir(parents=True, exist_ok=True)
    done.touch()
    print(
        f"{group.setting.name}: {count} of {len(names)} runs in "
        f"{time.process_time() - cpu:.0f} s of CPU, {time.perf_counter() - started:.0f} s",
        flush=True,
    )


def facts_of(run: LabRun, group: Group) -> dict[str, Any]:
    """Return what is stored beside the series."""
    setting, change = run.setting, run.change
    starts = {}
    if run.truth is not None:
        for later in GRID:
            for action in ACTIONS:
                fork = run.truth.find(action.name, group.onset + later)
                if fork is not None:
                    starts[f"{action.name}_{later}"] = fork.start
    return {
        "split": run.split,
        "family": setting.family,
        "optimizer": setting.optimizer,
        "precision": setting.precision,
        "rate": setting.rate,
        "seed": setting.seed,
        "steps": setting.steps,
        "batch": run.batch,
        "change": change.name,
        "kind": change.kind,
        "environment": change.environment,
        "amount": change.amount,
        "onset": group.onset,
        "twin": f"{setting.name}_nothing",
        "markers": [] if change.marker is None else [[group.onset, change.marker]],
        "starts": starts,
    }


def report(folder: Path, summary: Path | None) -> None:
    """Write the table of outcomes, and print which action rescues what."""
    rows: list[dict[str, Any]] = []
    for name in list_runs(folder):
        run = load_run(folder, name)
        rows.append(summarise(run, load_run(folder, run.facts["twin"])))
    if not rows:
        print(f"no runs in {folder}")
        return
    for path in filter(None, (folder / "outcomes.csv", summary)):
        write_table(path, rows)
    table = Table(title="runs by change: hurt, and rescued from it by an action on the grid")
    verdicts = ("act", "beyond_rescue", "either", "ignore")
    for column in ("change", "runs", *verdicts, *(action.name for action in ACTIONS)):
        table.add_column(
            column.replace("_", " "), justify="left" if column == "change" else "right"
        )
    for change, counts in rescue_table(rows):
        columns = ("runs", *verdicts, *(action.name for action in ACTIONS))
        table.add_row(change, *(str(counts[column]) for column in columns))
    Console(width=150).print(table)
    for split in ("fit", "test"):
        own = [row for row in rows if row["split"] == split]
        acts = sum(row["verdict"] == "act" for row in own)
        print(f"{split}: {len(own)} runs, {acts} to act on")


def export(folder: Path, target: Path, split: str | None) -> None:
    """Write the stored runs as labelled logs."""
    events = []
    for run in iterate(folder, split):
        export_run(target, run)
        event = event_of(run, summarise(run, load_run(folder, run.facts["twin"])))
        if event is not None:
            events.append(event)
    write_events(target, events)


if __name__ == "__main__":
    sys.exit(main())
