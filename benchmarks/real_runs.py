"""Replay real training runs with labelled events through the rules, and score what they would do.

    python benchmarks/real_runs.py [--runs DIR] [--rules FILE] [--only PREFIX] [--details]

DIR holds runs/*.csv, events.csv and score.py; by default `../shared/real-runs` beside the
repository, and without it nothing is done. The policy runs in mode `auto`; every cut or rollback it
issues counts as a proposal. A replay cannot change the past: a command counts as applied one row
later, and the data go on as they were.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import numpy as np

from stabilizer.protocol.batches import MarkerKind, SnapshotInfo
from stabilizer.protocol.commands import (
    Command,
    CommandKind,
    CommandResult,
    CommandState,
    ReadBack,
)
from stabilizer.protocol.decisions import AlertState, Mode
from stabilizer.protocol.series import Catalog, SeriesKey
from stabilizer.rules.brain import Brain, PolicyContext
from stabilizer.rules.loader import RuleFile, default_rules, load_rules
from stabilizer.rules.outcome import CommandIntent, Outcome

DEFAULT_ROOT = Path(__file__).parents[1].parent / "shared" / "real-runs"
SNAPSHOT_EVERY = 25
KEPT_SNAPSHOTS = 12
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def series_of(column: str) -> SeriesKey:
    """Name a column `metric[/qualifier][/layerN]` in the words of the protocol."""
    metric, *parts = column.split("/")
    labels = {}
    for part in parts:
        if part.startswith("layer"):
            labels["layer"] = part.removeprefix("layer")
        elif metric == "loss":
            labels["source"] = part
        elif metric == "activation_rms":
            labels["kind"] = part
        else:
            labels["head"] = part
    return SeriesKey(metric=metric, labels=labels)


@dataclass
class Replay:
    """One run through the brain."""

    brain: Brain
    attempt: int = 0
    in_flight: list[CommandIntent] = field(default_factory=list)
    snapshots: list[SnapshotInfo] = field(default_factory=list)
    proposals: list[int] = field(default_factory=list)
    fired: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def begin_attempt(self, step: int, reason: MarkerKind) -> None:
        """Go on in a new attempt."""
        self.attempt += 1
        self.brain.begin_attempt(self.attempt, step, reason)

    def settle(self, step: int) -> None:
        """Tell the brain that what it issued has been applied here and now."""
        for intent in self.in_flight:
            result = CommandResult(
                command_id=intent.key,
                state=CommandState.APPLIED,
                applied_step=step,
                read_back=ReadBack(attempt=self.attempt, step=step),
            )
            command = Command(
                id=intent.key,
                run_id="replay",
                attempt=intent.attempt,
                parameters=intent.parameters,
                state=CommandState.APPLIED,
                reason=intent.reason,
                issued_step=intent.issued_step,
                issued_at=EPOCH,
                expires_at=EPOCH,
                result=result,
            )
            self.brain.command_changed(command)
            if intent.parameters.kind is CommandKind.ROLLBACK:
                self.begin_attempt(step, MarkerKind.ROLLBACK)
        self.in_flight.clear()

    def take(self, out: Outcome, step: int) -> None:
        """Note what an outcome says."""
        for change in out.alerts:
            if change.state is AlertState.FIRING:
                self.fired[change.key.rule] += 1
        for intent in out.commands:
            self.in_flight.append(intent)
            if intent.parameters.kind is not CommandKind.PAUSE:
                self.proposals.append(step)
        for incident in out.incidents:
            if incident.decision is not None:
                d = incident.decision
                rules = ",".join(incident.rules)
                self.notes.append(
                    f"{d.step} #{incident.number} {d.kind}/{d.reason} {d.message} [{rules}]"
                )

    def keep_snapshot(self, row: int, step: int) -> None:
        """Let the job hold a snapshot now and then."""
        if row % SNAPSHOT_EVERY:
            return
        name = f"{self.attempt}-{step}"
        info = SnapshotInfo(id=name, attempt=self.attempt, step=step, finite=True)
        self.snapshots = [*self.snapshots[1 - KEPT_SNAPSHOTS :], info]
        self.brain.set_snapshots(self.snapshots)


def rows_of(path: Path) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    with path.open(newline="") as file:
        reader = csv.reader(file)
        names = next(reader)
        for row in reader:
            cells = [row[i] for i, n in enumerate(names) if n not in ("step", "attempt")]
            present = np.array([cell != "" for cell in cells])
            values = np.array([float(cell or 0) for cell in cells], np.float32)
            yield int(row[names.index("step")]), int(row[names.index("attempt")]), values, present


def replay(path: Path, rules_text: str) -> tuple[str, Replay, int]:
    rules = load_rules(rules_text)
    with path.open(newline="") as file:
        names = [n for n in next(csv.reader(file)) if n not in ("step", "attempt")]
    catalog = Catalog(series=tuple(series_of(name) for name in names))
    state = Replay(Brain(rules))
    state.brain.add_catalog(catalog)
    context, last_attempt, rows = PolicyContext(Mode.AUTO), None, 0
    for rows, (step, attempt, values, present) in enumerate(rows_of(path), start=1):
        if attempt != last_attempt:
            # the first rows of a log are not a resume that the log shows
            state.begin_attempt(step - 1 if last_attempt is not None else 0, MarkerKind.RESUME)
            last_attempt = attempt
        state.settle(step - 1)
        state.take(state.brain.observe(catalog.id, step, values, present), step)
        state.take(state.brain.decide(step, context), step)
        state.keep_snapshot(rows, step)
    broken = [health for health in state.brain.rule_health if not health.ok]
    if broken:
        raise SystemExit(f"{path.stem}: rules broke: {broken}")
    state.brain = None  # not to be sent back
    return path.stem, state, rows


def load_scorer(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("score", root / "score.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{root}/score.py cannot be read")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=DEFAULT_ROOT)
    parser.add_argument("--rules", type=Path)
    parser.add_argument("--only", default="", help="prefixes of names, separated by commas")
    parser.add_argument("--details", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    if not (options.runs / "events.csv").exists():
        print(f"skipped: no labelled runs at {options.runs}")
        return
    rules: RuleFile = default_rules()
    if options.rules is not None:
        rules = load_rules(options.rules.read_text(), str(options.rules))
    only = tuple(options.only.split(","))
    paths = [p for p in sorted((options.runs / "runs").glob("*.csv")) if p.stem.startswith(only)]
    started, total, proposals = time.perf_counter(), 0, defaultdict(list)
    with ProcessPoolExecutor(options.jobs) as pool:
        for name, state, rows in pool.map(replay, paths, [rules.text] * len(paths)):
            total += rows
            proposals[name] = state.proposals
            if options.details:
                print(f"{name}: proposed {state.proposals[:12]}, fired {dict(state.fired)}")
                for note in state.notes[:12]:
                    print("    ", note)
    seconds = time.perf_counter() - started
    result = load_scorer(options.runs).score(options.runs, proposals)
    for key, value in result.items():
        if options.details or not isinstance(value, list | dict):
            print(f"{key}: {value}")
    print(f"{total} rows in {seconds:.0f} s, {1e6 * seconds / max(1, total):.0f} us a row")


if __name__ == "__main__":
    sys.exit(main())
