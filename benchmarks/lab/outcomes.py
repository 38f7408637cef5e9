"""What came out: for every run and point of the grid, what each action would have led to.

Losses are held-out ones, the mean over the last evaluations. A run is compared with its healthy
twin; where the change is one of its data or its schedule that an engineer would leave alone, with
itself.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.lab.oracle import ACTIONS, DOUBTFUL, GRID, HURT, outcome
from benchmarks.lab.storage import HEALTHY, StoredRun

_COLUMNS: Final = (
    *("run", "split", "family", "optimizer", "precision", "rate", "seed"),
    *("change", "kind", "environment", "amount", "onset"),
    *("verdict", "untouched", "best_action", "best"),
)
COLUMNS: Final = (
    *_COLUMNS,
    *(f"{action.name}_{later}" for later in GRID for action in ACTIONS),
    *(f"saved_{later}" for later in GRID),
)
"""Of the table of outcomes. Losses are ratios to the reference; `saved_N` is the share of the
damage that the best action N steps after the onset still undoes."""


def summarise(run: StoredRun, twin: StoredRun) -> dict[str, Any]:
    """Return a run's row of the table of outcomes."""
    facts, end = run.facts, run.facts["steps"]
    own = outcome(run.curves[""], end)
    is_reference = facts["kind"] == "lookalike" and facts["environment"]
    reference = own if is_reference else outcome(twin.curves[""], end)
    ratios = {
        (action.name, later): _ratio(run, action.name, later, reference)
        for later in GRID
        for action in ACTIONS
    }
    known = {key: ratio for key, ratio in ratios.items() if ratio is not None}
    best = min(known, key=lambda key: known[key], default=None)
    untouched = own / reference
    row = {name: facts[name] for name in _COLUMNS if name in facts}
    row |= {
        "run": run.name,
        "untouched": untouched,
        "best_action": "" if best is None else f"{best[0]}_{best[1]}",
        "best": untouched if best is None else known[best],
        "verdict": verdict(facts["kind"], untouched, math.inf if best is None else known[best]),
    }
    row |= {f"{name}_{later}": ratio for (name, later), ratio in ratios.items()}
    for later in GRID:
        at = [known[name, when] for name, when in known if when == later]
        row[f"saved_{later}"] = _saved(untouched, min(at, default=math.inf))
    return row


def verdict(kind: str, untouched: float, best: float) -> str:
    """Return what an engineer should have done: act, ignore, either; or `beyond_rescue`."""
    if kind == "healthy" or untouched <= DOUBTFUL[0]:
        return "ignore"
    if untouched < DOUBTFUL[1]:
        return "either"
    return "act" if best <= HURT else "beyond_rescue"


def _ratio(run: StoredRun, action: str, later: int, reference: float) -> float | None:
    start = run.facts["starts"].get(f"{action}_{later}")
    if start is None:
        return None
    return outcome(run.curves[f"{action}@{start}"], run.facts["steps"]) / reference


def _saved(untouched: float, best: float) -> float:
    if untouched <= 1 or math.isinf(best):
        return 0.0
    if math.isinf(untouched):
        return 1.0 if best <= HURT else 0.0
    return min(1.0, max(0.0, (untouched - best) / (untouched - 1)))


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the table of outcomes, whole or not at all."""
    temporary = path.with_suffix(".part")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _text(row.get(name)) for name in COLUMNS})
    temporary.replace(path)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def rescue_table(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Counter[str]]]:
    """Count, for every change, its runs by verdict and those that each action rescues."""
    table: dict[str, Counter[str]] = {}
    for row in rows:
        counts = table.setdefault(str(row["change"]), Counter())
        counts["runs"] += 1
        counts[str(row["verdict"])] += 1
        if row["verdict"] not in ("act", "beyond_rescue"):
            continue
        for action in ACTIONS:
            found = [row[f"{action.name}_{later}"] for later in GRID]
            if any(ratio is not None and ratio <= HURT for ratio in found):
                counts[action.name] += 1
    return sorted(table.items(), key=lambda item: (item[0] == HEALTHY, item[0]))
