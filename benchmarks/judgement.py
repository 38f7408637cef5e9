"""Replay labelled runs through the rules, and score what they would do.

    python benchmarks/judgement.py [--set NAME]... [--rules FILE] [--left-out DIR]
        [--only PREFIX,...] [--perturb NAME,...|all] [--details] [--jobs N] [--json FILE]

Sets are folders of `../shared` beside the repository (`--shared DIR`): real-runs, small-runs,
public-logs (runs/*.csv, events.csv; scored by real-runs/score.py) and cases (*.csv, expect.csv). A
set that is not there is skipped.

Every file goes through the reader, the naming of series, the rules engine and the snapshot ring of
`stabilizer backtest`. The policy runs in mode `auto`; every command that it issues, pauses
included, counts as a proposal.

--left-out DIR judges each run of real-runs by DIR/<source>.yaml: rules that were set without its
source. --perturb replays changed copies as well; runs left with fewer than 30 rows are exempt: for
them the result on the unchanged run is used. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import sys
import tempfile
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np

from stabilizer.logs.formats import read_rows
from stabilizer.logs.names import series_of
from stabilizer.logs.rows import LogRow
from stabilizer.logs.stream import steps_of
from stabilizer.replay.job import replay
from stabilizer.rules.loader import RuleFile, default_rules, load_rules

SHARED = Path(__file__).parents[1].parent / "shared"
SCORED = ("real-runs", "small-runs", "public-logs")
CASES = "cases"
MIN_ROWS = 30
SOURCES = {
    "idefics": "idefics",
    "opt175b": "opt",
    "gptlarge": "cs182",
    "gptsmall": "cs182",
    "polypythia": "polypythia",
    "moddednanogpt": "modded_nanogpt",
    "llmc": "llmc",
}
"""The source of a run, by the prefix of its name."""
STEP_SHIFT = 100_003
WARM_UP = 200


def source_of(run: str) -> str:
    return next((name for prefix, name in SOURCES.items() if run.startswith(prefix)), run)


@dataclass
class Verdict:
    """What the rules did on one run, or on one changed copy of it."""

    rows: int
    proposals: list[tuple[int, str]]
    alerts: list[tuple[int, str]]
    """(step at which it fired, rule)."""
    notes: list[str] = field(default_factory=list)


# Perturbations: rows in, rows out, and how far they shift the steps.

Rows = Iterable[LogRow]
Perturbation = Callable[[Rows, np.random.Generator], Iterator[LogRow]]


def every(stride: int) -> Perturbation:
    """Keep one step in `stride`; the steps themselves stay."""

    def thin(rows: Rows, _rng: np.random.Generator) -> Iterator[LogRow]:
        for index, row in enumerate(rows):
            if index % stride == 0:
                yield row

    return thin


def is_loss(column: str) -> bool:
    return series_of(column).metric == "loss"


def on_columns(
    chosen: Callable[[str], bool], change: Callable[[np.ndarray, np.random.Generator], np.ndarray]
) -> Perturbation:
    """Change the values of some columns."""

    @cache
    def mask(columns: tuple[str, ...]) -> np.ndarray:
        return np.array([chosen(column) for column in columns], np.bool_)

    def changed(rows: Rows, rng: np.random.Generator) -> Iterator[LogRow]:
        for row in rows:
            values = np.where(mask(row.columns), change(row.values, rng), row.values)
            yield replace(row, values=values)

    return changed


def to_bf16(values: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
    bits = values.astype(np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32)
    narrow = rounded.view(np.float32).astype(np.float64)
    return np.where(np.isfinite(values), narrow, values)


def noisy(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return values * (1 + 0.01 * rng.standard_normal(values.shape))


def dropped(rows: Rows, rng: np.random.Generator) -> Iterator[LogRow]:
    for row in rows:
        if rng.random() >= 0.05:
            yield row


def shifted(rows: Rows, _rng: np.random.Generator) -> Iterator[LogRow]:
    for row in rows:
        yield replace(row, step=row.step + STEP_SHIFT)


def warmed_up(rows: Rows, rng: np.random.Generator) -> Iterator[LogRow]:
    """Put a steep warm-up in front: the loss falls to its first value from three times as much."""
    first = None
    for row in rows:
        if first is None:
            first = row
            yield from steep_start(row, rng)
        yield replace(row, step=row.step + WARM_UP)


def steep_start(row: LogRow, rng: np.random.Generator) -> Iterator[LogRow]:
    loss = np.array([is_loss(column) for column in row.columns], np.bool_)
    for index in range(WARM_UP):
        factor = 1 + 2 * np.exp(-5 * index / WARM_UP)
        values = np.where(loss, row.values * factor, row.values)
        values = values * (1 + 0.005 * rng.standard_normal(values.shape))
        yield replace(row, step=max(0, row.step - 1) + index, values=values)


def without(metric: str) -> Perturbation:
    """Take a global metric out."""

    @cache
    def kept(columns: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray]:
        indices = [i for i, c in enumerate(columns) if str(series_of(c)) != metric]
        return tuple(columns[i] for i in indices), np.array(indices, np.intp)

    def changed(rows: Rows, _rng: np.random.Generator) -> Iterator[LogRow]:
        for row in rows:
            columns, indices = kept(row.columns)
            if columns:
                present = None if row.present is None else row.present[indices]
                values = row.values[indices]
                yield replace(row, columns=columns, values=values, present=present)

    return changed


PERTURBATIONS: dict[str, tuple[Perturbation, int]] = {
    "every2": (every(2), 0),
    "every5": (every(5), 0),
    "noise": (on_columns(lambda column: series_of(column).metric != "lr", noisy), 0),
    "bf16": (on_columns(is_loss, to_bf16), 0),
    "times0.1": (on_columns(is_loss, lambda values, _: 0.1 * values), 0),
    "times3": (on_columns(is_loss, lambda values, _: 3 * values), 0),
    "shifted": (shifted, STEP_SHIFT),
    "dropped": (dropped, 0),
    "warmup": (warmed_up, WARM_UP),
    "no_grad_norm": (without("grad_norm"), 0),
}
NONE = "none"


@dataclass(frozen=True)
class Task:
    """One file, judged once for every variant."""

    path: Path
    rules_text: str
    variants: tuple[str, ...]
    details: bool


def judge(task: Task) -> tuple[Path, dict[str, Verdict]]:
    rules = load_rules(task.rules_text)
    rows = list(read_rows(task.path))
    return task.path, {
        name: judge_variant(task, rows, rules, name) for name in (NONE, *task.variants)
    }


def judge_variant(task: Task, rows: list[LogRow], rules: RuleFile, name: str) -> Verdict:
    shown: Rows = rows
    shift = 0
    if name != NONE:
        change, shift = PERTURBATIONS[name]
        rng = np.random.default_rng(zlib.crc32(f"{task.path.stem} {name}".encode()))
        shown = change(rows, rng)
    result = replay(steps_of(shown), rules)
    broken = [f"{health.name}: {health.last_error}" for health in result.health if not health.ok]
    if broken:
        raise SystemExit(f"{task.path.stem} {name}: rules broke: {broken}")
    verdict = Verdict(
        rows=result.rows,
        proposals=[(proposal.step - shift, str(proposal.kind)) for proposal in result.proposals],
        alerts=[(alert.step - shift, alert.rule) for alert in result.alerts],
    )
    if task.details and name == NONE:
        verdict.notes = [
            f"{d.attempt}.{d.step} #{d.incident} {d.kind}/{d.reason} {d.message} {list(d.rules)}"
            for d in result.decisions
        ]
    return verdict


@dataclass
class LabelledSet:
    """A folder of labelled runs."""

    name: str
    folder: Path

    @property
    def paths(self) -> list[Path]:
        """Its logs."""
        files = self.folder.glob("*.csv") if self.name == CASES else self.folder.glob("runs/*.csv")
        return sorted(path for path in files if path.name != "expect.csv")

    def score(self, verdicts: dict[str, Verdict], scorer: ModuleType) -> dict:
        """Score the chosen runs."""
        if self.name == CASES:
            return score_cases(self.folder / "expect.csv", verdicts)
        proposals = {run: [step for step, _ in v.proposals] for run, v in verdicts.items()}
        with tempfile.TemporaryDirectory() as chosen:
            return scorer.score(self._only(Path(chosen), set(verdicts)), proposals)

    def _only(self, root: Path, runs: set[str]) -> Path:
        """Build a folder with the chosen runs alone, as the scorer takes all of a folder."""
        (root / "runs").mkdir()
        for path in self.paths:
            if path.stem in runs:
                (root / "runs" / path.name).symlink_to(path)
        (root / "events.csv").symlink_to(self.folder / "events.csv")
        return root


def score_cases(expect: Path, verdicts: dict[str, Verdict]) -> dict:
    """Check each case; a failure describes what happened instead."""
    passed, failed = [], {}
    with expect.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["case"] in verdicts]
    for row in rows:
        wrong = case_failure(row, verdicts[row["case"]])
        if wrong:
            failed[row["case"]] = wrong
        else:
            passed.append(row["case"])
    return {"cases": len(rows), "passed": len(passed), "failed": failed}


def case_failure(row: dict[str, str], verdict: Verdict) -> str:
    low, high = (int(row["from"] or 0), int(row["to"] or 2**53))
    inside = [kind for step, kind in verdict.proposals if low <= step <= high]
    commands = ", ".join(f"{kind}@{step}" for step, kind in verdict.proposals[:6]) or "no command"
    alerts = ", ".join(f"{rule}@{step}" for step, rule in verdict.alerts[:8]) or "no alert"
    has_alert = any(low <= step <= high for step, _ in verdict.alerts)
    must = row["must"]
    is_right = {
        "none": not verdict.proposals,
        "notice": has_alert and not verdict.proposals,
        "alert": has_alert,
        "act": bool(inside),
        "rollback": inside[:1] == ["rollback"],
    }[must]
    where = f" in {low}-{high}" if row["from"] else ""
    return "" if is_right else f"must {must}{where}; {commands}; {alerts}"


def by_file(function: Callable[[Path], int]) -> Callable[[Path], int]:
    once = cache(function)
    return lambda path: once(path.resolve())


def load_scorer(shared: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("score", shared / "real-runs" / "score.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{shared}/real-runs/score.py cannot be read")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("num_steps", "span"):  # read once, not for every variant
        setattr(module, name, by_file(getattr(module, name)))
    return module


SHORT = {
    "caught": "act_events",
    "disturbed": "ignore_events",
    "healthy_runs_disturbed": "healthy_runs",
    "runs_with_false_interventions": None,
    "false_interventions": None,
    "false_per_100k_steps": None,
    "median_delay_steps": None,
    "passed": "cases",
}


def summary(result: dict) -> str:
    parts = [
        f"{name.replace('_', ' ')} {result[name]}" + (f" of {result[of]}" if of else "")
        for name, of in SHORT.items()
        if name in result
    ]
    return "; ".join(parts)


def show(title: str, result: dict) -> None:
    print(f"{title}: {summary(result)}")
    for name in ("missed", "disturbed_events"):
        if result.get(name):
            print(f"    {name.replace('_', ' ')}: {', '.join(result[name])}")
    for name in ("false_by_run", "failed"):
        for run, what in result.get(name, {}).items():
            print(f"    {name.partition('_')[0]}: {run}: {what}")


def show_details(verdicts: dict[str, dict[str, Verdict]]) -> None:
    for run, by_variant in verdicts.items():
        verdict = by_variant[NONE]
        fired = Counter(rule for _, rule in verdict.alerts)
        first = ", ".join(f"{kind}@{step}" for step, kind in verdict.proposals[:12])
        print(f"  {run}: {first or 'no command'}; fired {dict(fired)}")
        for note in verdict.notes[:20]:
            print("      ", note)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", action="append", choices=[*SCORED, CASES], dest="sets")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--rules", type=Path)
    parser.add_argument("--left-out", type=Path, help="folder with <source>.yaml")
    parser.add_argument("--only", default="", help="prefixes of names, separated by commas")
    parser.add_argument("--perturb", default="", help=f"all, or of {', '.join(PERTURBATIONS)}")
    parser.add_argument("--details", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all results to this file, too")
    return parser.parse_args()


def rules_for(options: argparse.Namespace, run: str, name: str) -> str:
    if options.left_out is not None and name == "real-runs":
        return (options.left_out / f"{source_of(run)}.yaml").read_text()
    return default_rules().text if options.rules is None else options.rules.read_text()


def judge_set(
    labelled: LabelledSet, options: argparse.Namespace, pool: ProcessPoolExecutor
) -> dict[str, dict[str, Verdict]]:
    """Judge the runs of a set; the longest first, so that no process ends with one alone."""
    only = tuple(options.only.split(","))
    paths = [path for path in labelled.paths if path.stem.startswith(only)]
    paths.sort(key=lambda path: -path.stat().st_size)
    variants = tuple(PERTURBATIONS) if options.perturb == "all" else options.perturb.split(",")
    variants = tuple(name for name in variants if name)
    if labelled.name == CASES:
        variants = ()
    tasks = [
        Task(path, rules_for(options, path.stem, labelled.name), variants, options.details)
        for path in paths
    ]
    found = {path.stem: verdicts for path, verdicts in pool.map(judge, tasks)}
    return dict(sorted(found.items()))


def main() -> None:
    options = parse_arguments()
    if not (options.shared / "real-runs" / "score.py").exists():
        print(f"skipped: no labelled runs at {options.shared}")
        print("{}")
        return
    scorer = load_scorer(options.shared)
    report: dict[str, dict] = {}
    started, rows = time.perf_counter(), 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for name in options.sets or [*SCORED, CASES]:
            labelled = LabelledSet(name, options.shared / name)
            if not labelled.paths:
                print(f"{name}: skipped, it is not at {labelled.folder}")
                continue
            verdicts = judge_set(labelled, options, pool)
            if options.details:
                show_details(verdicts)
            report[name] = score_variants(labelled, verdicts, scorer)
            for variant, result in report[name].items():
                show(name if variant == NONE else f"{name}, {variant}", result)
            rows += sum(v.rows for by_variant in verdicts.values() for v in by_variant.values())
    seconds = time.perf_counter() - started
    each = 1e6 * seconds * options.jobs / max(1, rows)
    print(f"{rows} rows in {seconds:.0f} s, {each:.0f} us a row")
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1))
    print(json.dumps({name: compact(results) for name, results in report.items()}))


def score_variants(
    labelled: LabelledSet, verdicts: dict[str, dict[str, Verdict]], scorer: ModuleType
) -> dict[str, dict]:
    by_variant: dict[str, dict[str, Verdict]] = defaultdict(dict)
    for run, found in verdicts.items():
        for variant, verdict in found.items():
            is_exempt = verdict.rows < MIN_ROWS
            by_variant[variant][run] = found[NONE] if is_exempt else verdict
    return {name: labelled.score(found, scorer) for name, found in by_variant.items()}


def compact(results: dict[str, dict]) -> dict:
    """Keep numbers and names."""
    return {
        variant: {key: value for key, value in result.items() if key != "false_by_run"}
        for variant, result in results.items()
    }


if __name__ == "__main__":
    sys.exit(main())
