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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from typing_extensions import override

from benchmarks.lab.groups import healthy_change
from benchmarks.lab.members import Change, Member
from benchmarks.lab.oracle import HURT, is_evaluated, outcome
from benchmarks.lab.training import Setting, World
from benchmarks.rescue.peers import PEERS, TICKS, GuardedRuns, Peer
from benchmarks.rescue.scenarios import Scenario, Truths, compute_truths, list_scenarios
from benchmarks.rescue.watched import WatchedJob

WORSE: Final = 1.02
"""A watched run is worse than an unwatched one beyond this ratio of their losses."""
_TOGETHER: Final = 32
"""Jobs that train in step."""


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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="every cause once")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=360)
    parser.add_argument("--family", help="only this family")
    parser.add_argument("--causes", default="", help="only these, separated by commas")
    parser.add_argument("--policy", type=Path, help="a rule file; by default the shipped one")
    parser.add_argument("--out", type=Path, default=Path("build/rescue"), help="computed oracles")
    parser.add_argument("--ours", action="store_true", help="train no peers: a rule file's trial")
    parser.add_argument("--details", type=Path, help="write what we did in each run here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds = 1 if options.smoke else options.seeds
    wanted = set(filter(None, options.causes.split(",")))
    jobs: dict[Setting, list[Scenario]] = {}
    for scenario in list_scenarios(seeds, options.steps, options.family):
        if not wanted or scenario.cause.name in wanted:
            jobs.setdefault(scenario.setting, []).append(scenario)
    score, diary = Score(), Diary()
    for setting, scenarios in jobs.items():
        compute_truths(setting, scenarios, options.out)
        try_job(setting, scenarios, score, diary, options)
    if options.details is not None:
        options.details.write_text("".join(f"{line}\n" for line in diary.lines))
    print(json.dumps(vars(score) | {"peers": dict(score.peers)}))
    return 0


def try_job(
    setting: Setting,
    scenarios: Sequence[Scenario],
    score: Score,
    diary: Diary,
    options: argparse.Namespace,
) -> None:
    """Let each cause strike copies of a job, every one protected otherwise, and count."""
    world = World(setting)
    diary.lines.append(f"# {setting.name}: the twin")
    final, interventions = watch(world, healthy_change(setting), options.policy, diary)
    score.healthy_disturbed += interventions > 0
    peers = {} if options.ours else PEERS
    unprotected = (healthy_change(setting), PEERS["unprotected"]())
    guarded = [(s.change(), make()) for s in scenarios for make in peers.values()]
    curves = train_guarded(world, [*guarded, *([unprotected] if interventions else [])])
    finals = [outcome(curve, setting.steps) for curve in curves]
    twin = finals[-1] if interventions else final
    print(f"{setting.name}: twin {twin:.3f}, {interventions} interventions", flush=True)
    for number, scenario in enumerate(scenarios):
        started = time.perf_counter()
        truth = scenario.truth(options.out)
        own = finals[number * len(peers) :]
        ratios = {"unprotected": truth.untouched}
        ratios |= {name: each / twin for name, each in zip(peers, own, strict=False)}
        diary.lines.append(f"# {scenario.name}: strikes after step {scenario.onset}")
        ours, interventions = watch(world, scenario.change(), options.policy, diary)
        ratios["ours"] = ours / twin
        count(score, ratios, truth)
        print(
            f"{scenario.name}: oracle {truth.best:.3f} ({truth.best_action}), "
            + ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items())
            + f"; {interventions} interventions, {time.perf_counter() - started:.0f} s",
            flush=True,
        )


def count(score: Score, ratios: Mapping[str, float], truth: Truths) -> None:
    """Add a scenario to the score; ratios are final losses relative to the twin's."""
    score.scenarios += 1
    score.oracle += truth.is_rescued
    score.rescued += ratios["ours"] <= HURT
    score.rescued_unprotected += ratios["unprotected"] <= HURT
    score.worse_than_unwatched += ratios["ours"] > max(HURT, WORSE * ratios["unprotected"])
    for name, ratio in ratios.items():
        if name not in ("ours", "unprotected"):
            score.peers[name] += ratio <= HURT
    score.peers["nan_stop"] += ratios["unprotected"] <= HURT  # a stopped job is not rescued


def train_guarded(world: World, guarded: Sequence[tuple[Change, Peer]]) -> list[dict[int, float]]:
    """Train jobs under their protections, so many at a time; return their held-out losses."""
    curves = []
    for first in range(0, len(guarded), _TOGETHER):
        curves += GuardedRuns(world, guarded[first : first + _TOGETHER]).run()
    return curves


def watch(world: World, change: Change, policy: Path | None, diary: Diary) -> tuple[float, int]:
    """Train a job under us; return its final held-out loss and the number of interventions."""
    with diary.reading():
        run = WatchedJob(world, world.first_state(Member(change)), policy)
        end, curve = world.setting.steps, {}
        for _ in range(TICKS * end):
            step = run.advance()
            if is_evaluated(step, end):
                curve[step] = world.evaluate(run.weights)[0]
            if step >= end:
                break
        run.finish()
    diary.lines.append(f"held out: {[(step, round(loss, 3)) for step, loss in curve.items()]}")
    return outcome(curve, end), run.interventions


class Diary(logging.Handler):
    """What the agent reports of alerts and commands, line by line, and nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep what is logged meanwhile."""
        logger = logging.getLogger("stabilizer")
        before = logger.level, logger.propagate
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.setLevel(before[0])
            logger.propagate = before[1]


if __name__ == "__main__":
    sys.exit(main())
