"""The closed loop, live: `python -m benchmarks.rescue [--smoke] [--policy FILE] [--out FOLDER]`.

Every cause strikes a job of the laboratory: unprotected, under what is used today, and under us in
solo mode. Rescued is what ends within 5 percent of its twin's held-out loss. The oracle is the best
action on the laboratory's grid. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from benchmarks.lab.groups import healthy_change
from benchmarks.lab.members import Change, Member
from benchmarks.lab.oracle import HURT, is_evaluated, outcome
from benchmarks.lab.training import Setting, World
from benchmarks.rescue.peers import PEERS, TICKS, GuardedRuns
from benchmarks.rescue.scenarios import Scenario, compute_truths, list_scenarios
from benchmarks.rescue.watched import WatchedJob

WORSE: Final = 1.02
"""A watched run is worse than an unwatched one beyond this ratio of their losses."""


@dataclass
class Score:
    """The counts of all scenarios."""

    scenarios: int = 0
    rescued: int = 0
    oracle: int = 0
    rescued_unprotected: int = 0
    healthy_disturbed: int = 0
    worse_than_unwatched: int = 0
    peers: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Twin:
    """A healthy job's final loss, and whether we disturbed it."""

    final: float
    disturbed: bool


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="every cause once")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=360)
    parser.add_argument("--family", help="only this family")
    parser.add_argument("--causes", default="", help="only these, separated by commas")
    parser.add_argument("--policy", type=Path, help="a rule file; by default the shipped one")
    parser.add_argument("--out", type=Path, default=Path("build/rescue"), help="computed oracles")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.getLogger("stabilizer").setLevel(logging.CRITICAL)
    seeds = 1 if options.smoke else options.seeds
    wanted = set(filter(None, options.causes.split(",")))
    scenarios = [
        scenario
        for scenario in list_scenarios(seeds, options.steps, options.family)
        if not wanted or scenario.cause.name in wanted
    ]
    compute_truths(scenarios, options.out)
    score = Score()
    twins = {}
    for setting in dict.fromkeys(scenario.setting for scenario in scenarios):
        twins[setting] = train_twin(setting, options.policy)
        score.healthy_disturbed += twins[setting].disturbed
    for scenario in scenarios:
        try_scenario(scenario, twins[scenario.setting], score, options)
    print(json.dumps(vars(score) | {"peers": dict(score.peers)}))
    return 0


def train_twin(setting: Setting, policy: Path | None) -> Twin:
    """Train a healthy job under us; its loss is that of one that we left alone."""
    world = World(setting)
    final, interventions = watch(world, healthy_change(setting), policy)
    if interventions:
        member = Member(healthy_change(setting))
        end = setting.steps
        final = outcome(GuardedRuns(world, member, [PEERS["unprotected"]()]).run()[0], end)
    return Twin(final, interventions > 0)


def try_scenario(scenario: Scenario, twin: Twin, score: Score, options: argparse.Namespace) -> None:
    """Let a cause strike each protected job, and count."""
    started = time.perf_counter()
    truth = scenario.truth(options.out)
    world = World(scenario.setting)
    member = Member(scenario.change())
    curves = GuardedRuns(world, member, [make() for make in PEERS.values()]).run()
    end = scenario.setting.steps
    ratios = {
        name: outcome(curve, end) / twin.final for name, curve in zip(PEERS, curves, strict=True)
    }
    ours, interventions = watch(world, scenario.change(), options.policy)
    ratios["ours"] = ours / twin.final
    score.scenarios += 1
    score.oracle += truth.is_rescued
    score.rescued += ratios["ours"] <= HURT
    score.rescued_unprotected += ratios["unprotected"] <= HURT
    score.worse_than_unwatched += ratios["ours"] > max(HURT, WORSE * ratios["unprotected"])
    for name, ratio in ratios.items():
        if name not in ("ours", "unprotected"):
            score.peers[name] += ratio <= HURT
    score.peers["nan_stop"] += ratios["unprotected"] <= HURT  # a stopped job is not rescued
    print(
        f"{scenario.name}: oracle {truth.best:.3f} ({truth.best_action}), "
        + ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items())
        + f"; {interventions} interventions, {time.perf_counter() - started:.0f} s",
        flush=True,
    )


def watch(world: World, change: Change, policy: Path | None) -> tuple[float, int]:
    """Train a job under us; return its final held-out loss and the number of interventions."""
    run = WatchedJob(world, world.first_state(Member(change)), policy)
    end, curve = world.setting.steps, {}
    for _ in range(TICKS * end):
        step = run.advance()
        if is_evaluated(step, end):
            curve[step] = world.evaluate(run.weights)[0]
        if step >= end:
            break
    run.finish()
    return outcome(curve, end), run.interventions


if __name__ == "__main__":
    sys.exit(main())
