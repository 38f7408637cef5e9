"""What the rules cost per step, beside a plain numpy EWMA with z-score on the same frames.

    python benchmarks/rules_speed.py [--steps N]

For every case both are run in turn, several times, and the fastest time of each is compared: the
ratio is what counts, since the machine may be busy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from stabilizer.protocol.batches import MarkerKind
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.series import Catalog, SeriesKey
from stabilizer.rules.brain import Brain, PolicyContext
from stabilizer.rules.loader import default_rules, load_rules

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


def frames(num_series: int, count: int = 512) -> np.ndarray:
    rng = np.random.default_rng(0)
    levels = rng.uniform(0.5, 5.0, num_series)
    return (levels * np.exp(0.05 * rng.standard_normal((count, num_series)))).astype(np.float32)


def catalog(num_series: int) -> Catalog:
    kinds = ("o_proj", "fc2", "q_proj", "k_proj")
    keys = [SeriesKey(metric=name) for name in ("loss", "z_loss", "grad_norm")]
    for index in range(num_series - len(keys)):
        kind, layer = kinds[index % len(kinds)], index // len(kinds)
        labels = {"module": f"layers.{layer}.{kind}", "kind": kind, "layer": str(layer)}
        keys.append(SeriesKey(metric="activation_rms", labels={**labels, "tower": "language"}))
    return Catalog(series=tuple(keys))


def per_step(function: Callable[[int], object], steps: int, repeats: int = 5) -> float:
    best, at = float("inf"), 0
    for _ in range(repeats):
        started = time.process_time()
        for _ in range(steps):
            at += 1
            function(at)
        best = min(best, (time.process_time() - started) / steps)
    return 1e6 * best


def brain_step(rules: str | None, num_series: int, rows: np.ndarray) -> tuple[Brain, Callable]:
    brain = Brain(default_rules() if rules is None else load_rules(rules))
    frame = catalog(num_series)
    brain.add_catalog(frame)
    brain.begin_attempt(1, 0, MarkerKind.RESUME)
    context = PolicyContext(Mode.OBSERVE)

    def step(at: int) -> None:
        brain.observe(frame.id, at, rows[at % len(rows)])
        brain.decide(at, context)

    return brain, step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    print(f"{'series':>7}  {'rules':28} {'us/step':>9} {'ewma us':>9} {'ratio':>7}  state")
    for num_series in (150, 2000, 20_000):
        rows = frames(num_series)
        limit = Ewma(num_series)
        cases: dict[str, str | None] = {"default rules, with decide": None}
        for name, detect in DETECTORS.items():
            select = "{metric: [activation_rms, loss, z_loss, grad_norm]}"
            rule = f"{{name: r, select: {select}, detect: {{{detect}}}, severity: notice}}"
            cases[name] = f"rules: [{rule}]\n{POLICY}"
        for name, rules in cases.items():
            brain, step = brain_step(rules, num_series, rows)
            plain = per_step(lambda at: limit.step(rows[at % len(rows)]), steps)  # noqa: B023  used at once
            ours = per_step(step, steps)
            started = time.process_time()
            size = len(brain.state_dict())
            saving = 1e3 * (time.process_time() - started)
            state = f"{size / 1024:.0f} KiB in {saving:.1f} ms"
            ratio = ours / plain
            print(f"{num_series:7}  {name:28} {ours:9.0f} {plain:9.0f} {ratio:7.1f}  {state}")


if __name__ == "__main__":
    main()
