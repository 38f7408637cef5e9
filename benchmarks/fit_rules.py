"""Set the constants of the shipped rules on recorded runs.

    python benchmarks/fit_rules.py [--leave-out SOURCE | --leave-out each] [--out PATH]
        [--cache FILE] [--seed N] [--rounds N] [--jobs N] [--shared DIR]

A coordinate search: each constant in turn, in an order drawn from the seed, takes the value of its
list with the lowest cost; a tie keeps the present value. The cost counts events missed, events and
healthy runs disturbed, runs with false interventions, failed cases, and delays, on real-runs,
small-runs, public-logs and cases. Long runs are judged on excerpts: their start, and the steps
around their events.

With --leave-out the runs of one source of real-runs are never opened; `each` leaves every source
out in turn and writes PATH/<source>.yaml, for `judgement.py --left-out PATH`. Without it PATH is
the rule file that results from all runs.

Every run judged is one line of the cache: the search continues where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from benchmarks.judgement import (
    CASES,
    SCORED,
    SHARED,
    SOURCES,
    LabelledSet,
    Verdict,
    load_scorer,
    source_of,
)
from stabilizer.logs.formats import read_rows
from stabilizer.logs.rows import LogRow
from stabilizer.logs.stream import steps_of
from stabilizer.replay.job import replay
from stabilizer.rules.loader import default_rules, load_rules

START = 5000
AROUND = 2500
"""Steps of a long run that are judged: from its first step, and around each event."""


@dataclass(frozen=True)
class Constant:
    """A number of the rule file, and the values that it may take."""

    rule: str
    key: str
    values: tuple[float, ...]

    def set(self, text: str, value: float) -> str:
        """Return the rule file with another value."""
        start = text.index(f"- name: {self.rule}\n")
        end = text.find("\n  - name:", start)
        block = text[start : end if end >= 0 else len(text)]
        number = rf"\b{self.key}: [-\d.e+]+"
        changed, count = re.subn(number, f"{self.key}: {value:g}", block, count=1)
        if count != 1:
            raise SystemExit(f"rule {self.rule} has no {self.key}")
        return text.replace(block, changed, 1)

    def of(self, text: str) -> float:
        """Return its value in a rule file."""
        block = text[text.index(f"- name: {self.rule}\n") :]
        found = re.search(rf"\b{self.key}: ([-\d.e+]+)", block)
        if found is None:
            raise SystemExit(f"rule {self.rule} has no {self.key}")
        return float(found[1])


CONSTANTS = (
    Constant("loss_rising", "above", (4, 5, 6, 7)),
    Constant("loss_rising", "steps", (30, 40, 50)),
    Constant("loss_rising_fast", "above", (8, 10, 12)),
    Constant("gradient_moved", "above", (4, 5, 6)),
    Constant("loss_jump", "least", (0.1, 0.2, 0.4)),
    Constant("attention_entropy_near_zero", "share", (0.4, 0.5, 0.6)),
    Constant("attention_entropy_collapse", "share", (0.3, 0.4, 0.5)),
    Constant("attention_narrowing", "share", (0.74, 0.78, 0.82)),
    Constant("grad_norm_drift", "least", (0.8, 1, 1.3)),
)


def excerpt(rows: Iterator[LogRow], events: list[tuple[int, int]]) -> Iterator[LogRow]:
    first: int | None = None
    for row in rows:
        first = row.step if first is None else first
        at_start = row.step < first + START
        if at_start or any(low - AROUND < row.step < high + AROUND for low, high in events):
            yield row


def judge(task: tuple[Path, str, list[tuple[int, int]]]) -> dict:
    path, text, events = task
    result = replay(steps_of(excerpt(read_rows(path), events)), load_rules(text))
    return {
        "proposals": [(p.step, str(p.kind)) for p in result.proposals],
        "alerts": [(alert.step, alert.rule) for alert in result.alerts],
        "rows": result.rows,
    }


@dataclass
class Judge:
    """Judges rule files on the chosen runs, each run once per rule file."""

    sets: list[tuple[LabelledSet, list[Path]]]
    scorer: ModuleType
    pool: ProcessPoolExecutor
    cache: Path
    known: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cache.exists():
            for line in self.cache.read_text().splitlines():
                entry = json.loads(line)
                self.known[entry["key"]] = entry["verdict"]

    def cost(self, text: str) -> float:
        """Return what the faults of a rule file on the chosen runs add up to."""
        total = 0.0
        for labelled, paths in self.sets:
            result = labelled.score(self._verdicts(labelled, paths, text), self.scorer)
            if labelled.name == CASES:
                total += 10 * len(result["failed"])
                continue
            total += 10 * (result["act_events"] - result["caught"] + result["disturbed"])
            total += 10 * result["healthy_runs_disturbed"]
            total += 4 * result["runs_with_false_interventions"]
            total += (result["median_delay_steps"] or 0) / 50
        return total

    def _verdicts(self, labelled: LabelledSet, paths: list[Path], text: str) -> dict[str, Verdict]:
        rules = load_rules(text).hash
        keys = {path: f"{rules} {labelled.name} {path.stem}" for path in paths}
        missing = [path for path in paths if keys[path] not in self.known]
        events = events_of(labelled)
        tasks = [(path, text, events[path.stem]) for path in missing]
        with self.cache.open("a") as file:
            for path, verdict in zip(missing, self.pool.map(judge, tasks), strict=True):
                self.known[keys[path]] = verdict
                file.write(json.dumps({"key": keys[path], "verdict": verdict}) + "\n")
                file.flush()
        return {path.stem: Verdict(**self.known[keys[path]]) for path in paths}


def events_of(labelled: LabelledSet) -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    path = labelled.folder / "events.csv"
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                low = int(row["step_start"])
                found[row["run"]].append((low, min(int(row["step_end"]), low + AROUND)))
    return found


def fit(judge_of: Judge, text: str, seed: int, rounds: int) -> str:
    order = list(CONSTANTS)
    random.Random(seed).shuffle(order)
    best = judge_of.cost(text)
    print(f"start: cost {best:.2f}", flush=True)
    for _ in range(rounds):
        before = text
        for constant in order:
            present = constant.of(text)
            for value in constant.values:
                if value == present:
                    continue
                cost = judge_of.cost(constant.set(text, value))
                if cost < best - 1e-9:
                    best, present = cost, value
            text = constant.set(text, present)
            print(f"{constant.rule}.{constant.key} = {present:g}: cost {best:.2f}", flush=True)
        if text == before:
            break
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--leave-out", choices=[*dict.fromkeys(SOURCES.values()), "each"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("build/fit-rules.jsonl"))
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    if not (options.shared / "real-runs" / "score.py").exists():
        print(f"skipped: no labelled runs at {options.shared}")
        return
    options.cache.parent.mkdir(parents=True, exist_ok=True)
    scorer = load_scorer(options.shared)
    given = options.leave_out
    left_out = [*dict.fromkeys(SOURCES.values())] if given == "each" else [given]
    with ProcessPoolExecutor(options.jobs) as pool:
        for source in left_out:
            print(f"all runs but those of {source}" if source else "all runs")
            sets = chosen(options.shared, source)
            judge_of = Judge(sets, scorer, pool, options.cache)
            text = fit(judge_of, default_rules().text, options.seed, options.rounds)
            write(text, options.out, source)


def chosen(shared: Path, left_out: str | None) -> list[tuple[LabelledSet, list[Path]]]:
    sets = [LabelledSet(name, shared / name) for name in (*SCORED, CASES)]
    return [
        (
            labelled,
            [
                path
                for path in labelled.paths
                if labelled.name != SCORED[0] or source_of(path.stem) != left_out
            ],
        )
        for labelled in sets
        if labelled.paths
    ]


def write(text: str, out: Path | None, source: str | None) -> None:
    if out is None:
        return
    path = out if source is None else out / f"{source}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"wrote {path}, {hashlib.sha256(text.encode()).hexdigest()[:12]}")


if __name__ == "__main__":
    sys.exit(main())
