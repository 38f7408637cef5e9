"""What the rules cost per step, beside a plain numpy EWMA with z-score on the same frames.

    python benchmarks/rules_speed.py [--steps N] [--no-backtest]

Frames hold the series that the agent sends: loss, gradient norm, z-loss and learning rates at every
step, and of every layer the activations and gradients of four projections and the entropy and
largest logit of the attention. "mixed" measures the modules at every tenth step, as the agent does;
"dense" at every step. Of both, rules and EWMA, the fastest of several rounds counts.

The backtest reads a CSV file of 35,000 steps and 2,000 series (mixed, and dense) in a process of
its own, as `stabilizer backtest` does. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from stabilizer.logs.formats import read_rows
from stabilizer.logs.stream import steps_of
from stabilizer.protocol.batches import MarkerKind
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.series import Catalog, SeriesKey
from stabilizer.replay.job import replay
from stabilizer.rules.brain import Brain, PolicyContext
from stabilizer.rules.loader import default_rules, load_rules

SAMPLED_EVERY = 10
PER_LAYER = 11
POLICY = "policy: {ladder: [pause], act_on: {any: [severity:divergence]}}"
DETECTORS = {
    "nonfinite": "nonfinite: {}",
    "threshold": "threshold: {above: 1.0e+9}",
    "robust_zscore": "robust_zscore: {window: 128, above: 20, scale: log}",
    "drift": "drift: {window: 200, above: 5}",
    "collapse": "collapse: {window: 128, below: 0.01}",
    "spike": "spike: {window: 32, above: 50}",
    "rise": "rise: {above: 100, scale: log}",
    "fallen": "fallen: {share: 0.01}",
    "stuck": "stuck: {steps: 1000}",
}
BACKTEST_STEPS, BACKTEST_SERIES = 35_000, 2_000
LEARNING = 220
"""Frames before the time is taken: the baselines are learned."""
ABSENT = ("loss_total",)
"""Series of the agent's catalog that a job rarely has."""


class Ewma:
    """The plainest rule there is: mean and variance by exponential smoothing, and a z-score."""

    def __init__(self, num_series: int, alpha: float = 0.02) -> None:
        self.alpha = np.float32(alpha)
        self.mean = np.zeros(num_series, np.float32)
        self.variance = np.ones(num_series, np.float32)

    def step(self, values: np.ndarray) -> bool:
        """Take in a frame; tell whether anything is far off."""
        difference = values - self.mean
        score = difference / np.sqrt(self.variance + np.float32(1e-12))
        self.mean += self.alpha * difference
        self.variance = (1 - self.alpha) * (self.variance + self.alpha * difference * difference)
        return bool((np.abs(score) > 50).any())


def modules(num_series: int) -> Catalog:
    """Return the series of the modules of a model with enough layers."""
    keys: list[SeriesKey] = []
    layer = 0
    while len(keys) < num_series:
        keys += layer_series(layer)
        layer += 1
    return Catalog(series=tuple(keys[:num_series]))


def layer_series(layer: int) -> Iterator[SeriesKey]:
    own = {"layer": str(layer), "tower": "language"}
    for kind in ("fc2", "k_proj", "o_proj", "q_proj"):
        labels = {**own, "module": f"model.layers.{layer}.{kind}", "kind": kind}
        yield SeriesKey(metric="activation_rms", labels=labels)
        yield SeriesKey(metric="grad_norm", labels=labels)
    labels = {**own, "module": f"model.layers.{layer}.self_attn", "kind": "attention"}
    yield SeriesKey(metric="attention_entropy", labels={**labels, "head": "min"})
    yield SeriesKey(metric="attention_entropy", labels={**labels, "head": "mean"})
    yield SeriesKey(metric="attention_logit_max", labels=labels)


def healthy(catalog: Catalog, count: int, seed: int = 0) -> np.ndarray:
    """Return frames of a healthy run, shape [count, N]."""
    rng = np.random.default_rng(seed)
    values = np.exp(0.05 * rng.standard_normal((count, len(catalog))))
    scale = {"loss": 2.5, "z_loss": 100.0, "lr": 3e-4, "attention_entropy": 0.5, "nonfinite": 0.0}
    fixed = {"lr", "lr_scale"}
    for column, key in enumerate(catalog.series):
        if key.metric in fixed:
            values[:, column] = 1.0
        values[:, column] *= scale.get(key.metric, 1.0)
    return values.astype(np.float32)


class Run:
    """The frames of a run, shown to rules again and again."""

    def __init__(self, num_series: int, every: int) -> None:
        from stabilizer.agent.probes.catalogs import every_step_catalog  # noqa: PLC0415  loads torch

        self.every_step = every_step_catalog(("decay", "no_decay"))
        self.modules = modules(num_series - len(self.every_step))
        self.num_series = num_series
        self.every = every
        self.scalars = healthy(self.every_step, 512)
        self.layers = healthy(self.modules, 512 if num_series < 10_000 else 128)
        self.there = np.array([key.metric not in ABSENT for key in self.every_step.series])

    def rules_step(self, rules: str | None) -> tuple[Brain, Callable[[int], None]]:
        """Return rules, the default pack for None, and what shows them a step."""
        brain = Brain(default_rules() if rules is None else load_rules(rules))
        brain.add_catalog(self.every_step)
        brain.add_catalog(self.modules)
        brain.begin_attempt(1, 0, MarkerKind.RESUME)
        context = PolicyContext(Mode.OBSERVE)

        def step(at: int) -> None:
            scalars = self.scalars[at % len(self.scalars)]
            brain.observe(self.every_step.id, at, scalars, self.there)
            if at % self.every == 0:
                brain.observe(self.modules.id, at, self.layers[at % len(self.layers)])
            brain.decide(at, context)

        return brain, step

    def ewma_step(self) -> Callable[[int], None]:
        """Return what shows a step to the plain limit."""
        scalars, layers = Ewma(len(self.every_step)), Ewma(len(self.modules))

        def step(at: int) -> None:
            scalars.step(self.scalars[at % len(self.scalars)])
            if at % self.every == 0:
                layers.step(self.layers[at % len(self.layers)])

        return step


def per_step(
    function: Callable[[int], None], steps: int, warm_up: int = 0, repeats: int = 3
) -> float:
    """Return milliseconds of processor time a step, in the fastest round."""
    for at in range(1, warm_up + 1):
        function(at)
    best, at = float("inf"), warm_up
    for _ in range(repeats):
        started = time.process_time()
        for _ in range(steps):
            at += 1
            function(at)
        best = min(best, (time.process_time() - started) / steps)
    return 1e3 * best


def measure(name: str, run: Run, rules: str | None, steps: int) -> float:
    """Measure rules beside the EWMA; print a line; return milliseconds a step."""
    brain, step = run.rules_step(rules)
    ours = per_step(step, steps, run.every * LEARNING)
    plain = per_step(run.ewma_step(), steps)
    broken = [
        f"{health.name}: {health.last_error}" for health in brain.rule_health if not health.ok
    ]
    if broken:
        raise SystemExit(f"rules broke: {broken}")
    size = len(brain.state_dict()) / 1024
    print(
        f"{run.num_series:7}  {name:30} {ours:9.3f} {plain:9.4f} {ours / plain:7.1f}  {size:8.0f}",
        flush=True,
    )
    return ours


def single(detect: str) -> str:
    metrics = "activation_rms, grad_norm, attention_entropy, attention_logit_max"
    select = f"{{metric: [{metrics}], module: '*'}}"
    return (
        f"rules: [{{name: r, select: {select}, detect: {{{detect}}}, severity: notice}}]\n{POLICY}"
    )


def write_log(path: Path, steps: int, num_series: int, every: int) -> None:
    """Write a log of the project's format, with metric/kind/layer columns."""
    run = Run(num_series, every)
    names = [column(key) for key in (*run.every_step.series, *run.modules.series)]
    empty = "," * len(run.modules)
    block = [",".join(map("{:.6g}".format, row)) for row in run.layers.tolist()]
    with path.open("w") as file:
        file.write(",".join(["step", *names]) + "\n")
        for at in range(1, steps + 1):
            scalars = run.scalars[at % len(run.scalars)].tolist()
            cells = [
                f"{x:.6g}" if there else "" for x, there in zip(scalars, run.there, strict=True)
            ]
            rest = "," + block[at % len(block)] if at % every == 0 else empty
            file.write(f"{at},{','.join(cells)}{rest}\n")


def column(key: SeriesKey) -> str:
    labels = key.labels
    parts = [labels.get("group"), labels.get("head") or labels.get("kind")]
    parts += [f"layer{labels['layer']}"] if "layer" in labels else []
    return "/".join([key.metric, *(part for part in parts if part)])


def backtest(path: Path) -> None:
    """Replay a log; print seconds and peak memory. Runs in a process of its own."""
    started = time.process_time()
    result = replay(steps_of(read_rows(path)), default_rules())
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": result.rows, "seconds": seconds, "peak_mib": peak}))


def measure_backtest(every: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.csv"
        write_log(path, BACKTEST_STEPS, BACKTEST_SERIES, every)
        command = [sys.executable, __file__, "--replay", str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result = json.loads(done.stdout.splitlines()[-1])
        size = path.stat().st_size / 2**20
    if result["rows"] != BACKTEST_STEPS:
        raise SystemExit(f"the backtest read {result['rows']} rows")
    print(
        f"backtest of {BACKTEST_STEPS} steps x {BACKTEST_SERIES} series, modules every {every}: "
        f"{result['seconds']:.1f} s, {result['peak_mib']:.0f} MiB, file of {size:.0f} MiB",
        flush=True,
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--no-backtest", action="store_true")
    parser.add_argument("--replay", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replay is not None:
        backtest(options.replay)
        return
    steps = options.steps
    found: dict[str, float | str] = {}
    print(f"{'series':>7}  {'rules':30} {'ms/step':>9} {'ewma ms':>9} {'ratio':>7}  state KiB")
    for short, num_series in (("150", 150), ("2k", 2000), ("20k", 20_000)):
        for kind, every in (("", SAMPLED_EVERY), ("_dense", 1)):
            run = Run(num_series, every)
            name = f"default pack{kind.replace('_', ', ') or ', mixed'}"
            found[f"ms_per_frame_{short}{kind}"] = measure(name, run, None, steps)
    alone = {name: measure(name, run, single(detect), steps) for name, detect in DETECTORS.items()}
    slowest = max(alone, key=alone.__getitem__)
    found |= {"slowest_detector_20k_ms": alone[slowest], "slowest_detector": slowest}
    if not options.no_backtest:
        for kind, every in (("", SAMPLED_EVERY), ("_dense", 1)):
            result = measure_backtest(every)
            found[f"backtest_seconds_35k_2k{kind}"] = result["seconds"]
            found[f"backtest_peak_mib{kind}"] = result["peak_mib"]
    rounded = {name: round(x, 4) if isinstance(x, float) else x for name, x in found.items()}
    print(json.dumps(rounded))


if __name__ == "__main__":
    main()
