"""Fit the risk: `python benchmarks/fit_risk.py [--lab build/lab] [--write]`.

A sample is a step of a run of the laboratory. It is positive if, `HORIZON` steps later, the run
left alone has a held-out loss more than 5 percent above its reference's (docs/lab.md). Each family
is left out in turn; what is printed first is on families left out. `--write` fits all of them and
writes stabilizer/rules/risk/model.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.lab.oracle import HURT
from benchmarks.lab.storage import StoredRun, list_runs, load_run
from stabilizer.protocol.series import Catalog
from stabilizer.rules.risk.features import FEATURES, INSIDE, RiskFeatures
from stabilizer.rules.risk.model import HORIZON

EVERY: Final = 5
FIRST: Final = 60
"""The first step of which there are samples."""
LOWERS: Final = frozenset(("healed", "progress"))
FREE: Final = frozenset(("trend", "sources", "skipped", "inside"))
"""Features that may count either way; all others raise the risk."""
PENALTY: Final = 3.0
"""L2, on standardised weights."""
BINS: Final = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
TARGET: Final = Path(__file__).parent.parent / "stabilizer" / "rules" / "risk" / "model.json"


@dataclass
class Samples:
    """Features, [N, F]; what came of it, [N]; weights, [N]; and where each is from."""

    features: np.ndarray
    positive: np.ndarray
    weights: np.ndarray
    families: np.ndarray
    seeds: np.ndarray
    runs: np.ndarray
    steps: np.ndarray

    def where(self, chosen: np.ndarray) -> Samples:
        """Return a part."""
        return Samples(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--lab", type=Path, nargs="+", default=[Path("build/lab"), Path("build/lab-plain")]
    )
    parser.add_argument(
        "--unseen",
        type=int,
        metavar="SEED",
        help="leave out the groups from this seed on, too, and judge on those alone",
    )
    parser.add_argument("--write", action="store_true", help="write the constants that ship")
    options = parser.parse_args(arguments)
    samples = collect(options.lab)
    if samples is None:
        print("no runs: generate them by `make lab`")
        return 1
    left_out = predict_left_out(samples, options.unseen)
    judged = np.isfinite(left_out)
    report(samples.where(judged), left_out[judged])
    intercept, weights = fit(samples)
    fitted = predict(samples.features, intercept, weights)
    result: dict[str, Any] = {
        "runs": len(set(samples.runs)),
        "samples": len(samples.positive),
        "base_rate": round(float(np.average(samples.positive, weights=samples.weights)), 4),
        "brier_skill_left_out": round(skill(samples.where(judged), left_out[judged]), 4),
        "brier_skill_fitted": round(skill(samples, fitted), 4),
    }
    if options.write:
        constants = {name: float(f"{w:.6g}") for name, w in zip(FEATURES, weights, strict=True)}
        content = {"horizon": HORIZON, "intercept": float(f"{intercept:.6g}"), "weights": constants}
        TARGET.write_text(json.dumps(content | {"fitted_on": result}, indent=2) + "\n")
    print(json.dumps(result))
    return 0


def predict_left_out(samples: Samples, unseen: int | None) -> np.ndarray:
    """Return the probabilities that a fit on other families gives; NaN where none does.

    Args:
        samples: Of all runs.
        unseen: Fit on groups of smaller seeds only, and judge the others only.
    """
    probability = np.full(len(samples.positive), np.nan)
    is_late = np.ones(len(probability), np.bool_) if unseen is None else samples.seeds >= unseen
    for family in sorted(set(samples.families)):
        own = samples.families == family
        known = ~own if unseen is None else ~own & ~is_late
        if known.any():
            intercept, weights = fit(samples.where(known))
            probability[own & is_late] = predict(
                samples.features[own & is_late], intercept, weights
            )
    return probability


def collect(folders: Sequence[Path]) -> Samples | None:
    """Read the samples of all stored runs; every run weighs as much as any other."""
    parts: list[Samples] = []
    for folder in folders:
        for name in list_runs(folder):
            run = load_run(folder, name)
            twin = load_run(folder, run.facts["twin"])
            parts += samples_of(run, twin)
    if not parts:
        return None
    return Samples(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in Samples.__dataclass_fields__
        )
    )


def samples_of(run: StoredRun, twin: StoredRun) -> list[Samples]:
    """Return the samples of a run, and as many of a job that does not measure its layers."""
    catalog = Catalog(series=tuple(run.series.keys))
    reader = RiskFeatures()
    rows, positive, at = [], [], []
    for row, step in enumerate(run.series.steps.tolist()):
        reader.observe(catalog, step, run.series.values[row], run.series.present[row])
        outcome = label(run, twin, step)
        if step >= FIRST and step % EVERY == 0 and outcome is not None and reader.ready:
            rows.append(reader.features())
            positive.append(outcome)
            at.append(step)
    count = len(rows)
    features = np.array(rows, np.float64).reshape(count, len(FEATURES))
    outside = np.where([name in INSIDE for name in FEATURES], 0.0, features)
    is_watched = any(key.metric == "activation_rms" for key in run.series.keys)
    shares = ((features, 0.75), (outside, 0.25)) if is_watched else ((outside, 1.0),)
    return [
        Samples(
            own,
            np.array(positive, np.float64),
            np.full(count, share / max(1, count)),
            np.full(count, run.facts["family"]),
            np.full(count, run.facts["seed"]),
            np.full(count, run.name),
            np.array(at, np.int64),
        )
        for own, share in shares
    ]


def label(run: StoredRun, twin: StoredRun, step: int) -> bool | None:
    """Return whether a run left alone is hurt a horizon later; None beyond its end."""
    later = step + HORIZON
    if later > run.facts["steps"]:
        return None
    if step <= run.facts["onset"] or run.facts["kind"] == "healthy":
        return False
    if run.facts["kind"] == "lookalike" and run.facts["environment"]:
        return False
    return not _at(run.curves[""], later) <= HURT * _at(twin.curves[""], later)


def _at(curve: dict[int, float], step: int) -> float:
    """Return a held-out loss between two evaluations."""
    steps = sorted(curve)
    with np.errstate(invalid="ignore"):
        value = float(np.interp(step, steps, [curve[each] for each in steps]))
    return value if np.isfinite(value) else np.inf


def fit(samples: Samples) -> tuple[float, np.ndarray]:
    """Fit a logistic model.

    What is a sign of danger never lowers the risk: a weight of the other sign is chance in few
    runs, and is left out.
    """
    signs = np.array([-1.0 if n in LOWERS else 0.0 if n in FREE else 1.0 for n in FEATURES])
    used = np.ones(len(FEATURES), np.bool_)
    while True:
        part = replace(samples, features=samples.features[:, used])
        intercept, own = _fit(part)
        weights = np.zeros(len(FEATURES))
        weights[used] = own
        wrong = weights * signs < 0
        if not wrong.any():
            return intercept, weights
        used &= ~wrong


def _fit(samples: Samples, rounds: int = 40) -> tuple[float, np.ndarray]:
    """Fit by iteratively reweighted least squares, with a penalty."""
    mean = np.average(samples.features, axis=0, weights=samples.weights)
    spread = samples.features.std(axis=0) + 1e-9
    x = np.column_stack([np.ones(len(samples.positive)), (samples.features - mean) / spread])
    penalty = np.diag([0.0, *np.full(len(spread), PENALTY)])
    own = np.zeros(x.shape[1])
    for _ in range(rounds):
        p = 1 / (1 + np.exp(-np.clip(x @ own, -30, 30)))
        curvature = samples.weights * p * (1 - p) + 1e-9
        gradient = x.T @ (samples.weights * (samples.positive - p)) - penalty @ own
        step = np.linalg.solve((x * curvature[:, None]).T @ x + penalty, gradient)
        own += step
        if np.abs(step).max() < 1e-8:
            break
    weights = own[1:] / spread
    return float(own[0] - weights @ mean), weights


def predict(features: np.ndarray, intercept: float, weights: np.ndarray) -> np.ndarray:
    """Return probabilities."""
    return np.asarray(1 / (1 + np.exp(-np.clip(intercept + features @ weights, -30, 30))))


def skill(samples: Samples, probability: np.ndarray) -> float:
    """Return the Brier skill over the base rate of the same samples."""
    base = np.average(samples.positive, weights=samples.weights)
    error = np.average((probability - samples.positive) ** 2, weights=samples.weights)
    return float(1 - error / (base * (1 - base)))


def report(samples: Samples, probability: np.ndarray) -> None:
    """Print skill by family, and the reliability of all, on families left out."""
    console = Console(width=100)
    table = Table(title="families left out")
    for column in ("family", "runs", "base rate", "Brier", "Brier skill"):
        table.add_column(column, justify="right")
    for family in [*sorted(set(samples.families)), "all"]:
        own = (samples.families == family) | (family == "all")
        part = samples.where(own)
        base = np.average(part.positive, weights=part.weights)
        brier = np.average((probability[own] - part.positive) ** 2, weights=part.weights)
        cells = (f"{base:.3f}", f"{brier:.4f}", f"{skill(part, probability[own]):.3f}")
        table.add_row(family, str(len(set(part.runs))), *cells)
    console.print(table)
    table = Table(title="reliability on families left out")
    for column in ("predicted", "share of samples", "mean predicted", "came true"):
        table.add_column(column, justify="right")
    place = np.clip(np.digitize(probability, BINS) - 1, 0, len(BINS) - 2)
    for number in range(len(BINS) - 1):
        own = place == number
        if not own.any():
            continue
        w = samples.weights[own]
        table.add_row(
            f"{BINS[number]:g} to {BINS[number + 1]:g}",
            f"{w.sum() / samples.weights.sum():.3f}",
            f"{np.average(probability[own], weights=w):.3f}",
            f"{np.average(samples.positive[own], weights=w):.3f}",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
