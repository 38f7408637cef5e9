"""Set the constants of the shipped rules on recorded runs.

    python benchmarks/fit_rules.py [--leave-out SOURCE | --leave-out each] [--out PATH] [--check]
        [--cache FILE] [--seed N] [--rounds N] [--jobs N] [--shared DIR]

A coordinate search from the middle of every list of values: each constant in turn, in an order
drawn from the seed, takes the value with the lowest cost; of several such values the one nearest to
the middle of the list. What the shipped file says plays no part. The cost counts events missed,
events and healthy runs disturbed, runs with false interventions, failed cases, and delays, on
real-runs, small-runs, public-logs, and cases. Of small-runs every second seed is left out. Long
runs are judged on excerpts: their start, and the steps around their events.

With --leave-out the runs of one source of real-runs are never opened; `each` leaves every source
out in turn, and none at the end, and writes PATH/<source>.yaml and PATH/all.yaml, for
`judgement.py --left-out PATH`. Without it PATH is the rule file that results from all runs.
--check fails unless that file has the constants of the shipped one.

Every run judged is one line of the cache: the search continues where it was stopped. A run is not
judged again where the constants of metrics that it does not have differ, nor at stricter constants
than those that left it alone.
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
from functools import cache
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
from stabilizer.logs.names import series_of
from stabilizer.logs.rows import LogRow
from stabilizer.logs.stream import steps_of
from stabilizer.replay.job import replay
from stabilizer.rules.loader import default_rules, load_rules

START = 2000
AROUND = 1000
"""Steps of a long run that are judged: from its first step, and around each event."""


@dataclass(frozen=True)
class Constant:
    """A number of the rule file, and the values that it may take, the laxest first."""

    rule: str
    key: str
    values: tuple[float, ...]
    metrics: frozenset[str]
    """Those that its rule watches: other runs do not depend on it."""

    @property
    def name(self) -> str:
        """Its name in the cache."""
        return f"{self.rule}.{self.key}"

    @property
    def middle(self) -> float:
        """The value from which the search starts."""
        return self.values[len(self.values) // 2]

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


LOSS = frozenset({"loss"})
NORM = frozenset({"grad_norm"})
ENTROPY = frozenset({"attention_entropy"})
CONSTANTS = (
    Constant("loss_rising", "above", (4, 5, 6), LOSS),
    Constant("gradient_moved", "above", (4, 5, 6), NORM),
    Constant("attention_entropy_near_zero", "share", (0.6, 0.5, 0.4), ENTROPY),
    Constant("attention_entropy_collapse", "share", (0.5, 0.4, 0.3), ENTROPY),
)
Point = dict[str, float]
"""A value of each constant, by name."""


def text_at(point: Point) -> str:
    """Return the shipped file with these constants."""
    text = default_rules().text
    for constant in CONSTANTS:
        text = constant.set(text, point[constant.name])
    return text


def is_laxer(one: Point, other: Point) -> bool:
    """Return whether nothing in `one` is stricter than in `other`."""
    ranks = {c.name: c.values.index for c in CONSTANTS}
    return one.keys() == other.keys() and all(
        ranks[name](value) <= ranks[name](other[name]) for name, value in one.items()
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
    """Judges points on the chosen runs."""

    sets: list[tuple[LabelledSet, list[Path]]]
    scorer: ModuleType
    pool: ProcessPoolExecutor
    cache: Path
    known: dict[str, list[tuple[Point, dict]]] = field(default_factory=lambda: defaultdict(list))
    """What was found, by rule file without its constants, set and run."""

    def __post_init__(self) -> None:
        middle = {constant.name: constant.middle for constant in CONSTANTS}
        self._base = hashlib.sha256(text_at(middle).encode()).hexdigest()[:12]
        if self.cache.exists():
            for line in self.cache.read_text().splitlines():
                entry = json.loads(line)
                self.known[entry["run"]].append((entry["at"], entry["verdict"]))

    def cost(self, point: Point) -> float:
        """Return what the faults on the chosen runs add up to."""
        total = 0.0
        for labelled, paths in self.sets:
            result = labelled.score(self._verdicts(labelled, paths, point), self.scorer)
            if labelled.name not in SCORED:
                total += 10 * len(result["failed"])
                continue
            total += 10 * (result["act_events"] - result["caught"] + result["disturbed"])
            total += 10 * result["healthy_runs_disturbed"]
            total += 4 * result["runs_with_false_interventions"]
            total += (result["median_delay_steps"] or 0) / 50
        return total

    def _verdicts(
        self, labelled: LabelledSet, paths: list[Path], point: Point
    ) -> dict[str, Verdict]:
        events, text = events_of(labelled), text_at(point)
        at = {path: self._relevant(path, point) for path in paths}
        names = {path: f"{self._base} {labelled.name} {path.stem}" for path in paths}
        found = {
            path: self._known(
                names[path], at[path], by_quiet=only_commands_count(labelled, path.stem)
            )
            for path in paths
        }
        missing = [path for path in paths if found[path] is None]
        tasks = [(path, text, events[path.stem]) for path in missing]
        with self.cache.open("a") as file:
            for path, verdict in zip(missing, self.pool.map(judge, tasks), strict=True):
                found[path] = verdict
                self.known[names[path]].append((at[path], verdict))
                entry = {"run": names[path], "at": at[path], "verdict": verdict}
                file.write(json.dumps(entry) + "\n")
                file.flush()
        return {path.stem: Verdict(**verdict) for path, verdict in found.items() if verdict}

    def _relevant(self, path: Path, point: Point) -> Point:
        metrics = metrics_of(path)
        return {c.name: point[c.name] for c in CONSTANTS if c.metrics & metrics}

    def _known(self, name: str, at: Point, *, by_quiet: bool) -> dict | None:
        for known, verdict in self.known[name]:
            if known == at:
                return verdict
        if not by_quiet:
            return None
        for known, verdict in self.known[name]:
            if not verdict["proposals"] and is_laxer(known, at):
                return verdict
        return None


@cache
def metrics_of(path: Path) -> frozenset[str]:
    with path.open(newline="") as file:
        return frozenset(series_of(column).metric for column in next(csv.reader(file)))


def events_of(labelled: LabelledSet) -> dict[str, list[tuple[int, int]]]:
    is_scored = labelled.name in SCORED
    names = ("run", "step_start", "step_end") if is_scored else ("case", "from", "to")
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in rows_of(labelled.folder / ("events.csv" if is_scored else "expect.csv")):
        run, low, high = (row[name] for name in names)
        if low:
            found[run].append((int(low), min(int(high), int(low) + AROUND)))
    return found


@cache
def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def only_commands_count(labelled: LabelledSet, run: str) -> bool:
    """Return whether only commands count against this run, and no alert for it."""
    if labelled.name in SCORED:
        return True
    found = {row["case"]: row["must"] for row in rows_of(labelled.folder / "expect.csv")}
    return found[run] == "none"


def fit(judge_of: Judge, seed: int, rounds: int) -> Point:
    order = list(CONSTANTS)
    random.Random(seed).shuffle(order)
    laxest = {constant.name: constant.values[0] for constant in CONSTANTS}
    print(f"at the laxest values: cost {judge_of.cost(laxest):.2f}", flush=True)
    point = {constant.name: constant.middle for constant in CONSTANTS}
    for _ in range(rounds):
        before = dict(point)
        for constant in order:
            costs = {
                value: judge_of.cost({**point, constant.name: value}) for value in constant.values
            }
            middle = constant.values.index(constant.middle)
            point[constant.name] = min(
                costs,
                key=lambda v: (round(costs[v], 6), abs(constant.values.index(v) - middle)),
            )
            shown = ", ".join(f"{value:g}: {cost:.2f}" for value, cost in costs.items())
            print(f"{constant.name} = {point[constant.name]:g} of {shown}", flush=True)
        if point == before:
            break
    return point


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--leave-out", choices=[*dict.fromkeys(SOURCES.values()), "each"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path("build/fit-rules.jsonl"))
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    if not (options.shared / "real-runs" / "score.py").exists():
        print(f"skipped: no labelled runs at {options.shared}")
        return 0
    options.cache.parent.mkdir(parents=True, exist_ok=True)
    scorer = load_scorer(options.shared)
    given = options.leave_out
    left_out = [*dict.fromkeys(SOURCES.values()), None] if given == "each" else [given]
    is_right = True
    with ProcessPoolExecutor(options.jobs) as pool:
        for source in left_out:
            print(f"all runs but those of {source}" if source else "all runs")
            sets = chosen(options.shared, source)
            point = fit(Judge(sets, scorer, pool, options.cache), options.seed, options.rounds)
            write(text_at(point), options.out, source, is_folder=given == "each")
            if source is None:
                is_right = agrees(point)
    return 1 if options.check and not is_right else 0


def agrees(point: Point) -> bool:
    """Report whether the shipped file has these constants."""
    text = default_rules().text
    other = {c.name: c.of(text) for c in CONSTANTS if c.of(text) != point[c.name]}
    for name, value in other.items():
        print(f"{name} is {value:g} in the shipped file, {point[name]:g} here")
    if not other:
        print("the shipped file has these constants")
    return not other


def chosen(shared: Path, left_out: str | None) -> list[tuple[LabelledSet, list[Path]]]:
    sets = [LabelledSet(name, shared / name) for name in (*SCORED, CASES)]
    return [
        (
            labelled,
            [
                path
                for path in labelled.paths
                if not is_left_out(labelled.name, path.stem, left_out)
            ],
        )
        for labelled in sets
        if labelled.paths
    ]


def is_left_out(name: str, run: str, source: str | None) -> bool:
    if name == "small-runs":
        return run.endswith(("1", "3"))
    return name == "real-runs" and source_of(run) == source


def write(text: str, out: Path | None, source: str | None, *, is_folder: bool) -> None:
    if out is None:
        return
    path = out / f"{source or 'all'}.yaml" if is_folder or source else out
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
