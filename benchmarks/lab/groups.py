"""A group: a healthy job, and copies of it to which something happens at the same step."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.lab.families import FAMILIES
from benchmarks.lab.measuring import Series, WatchedRun
from benchmarks.lab.members import Change, Member, State
from benchmarks.lab.oracle import (
    GRID,
    MARGIN,
    SNAPSHOT_EVERY,
    Rollbacks,
    Truth,
    is_evaluated,
    is_hurt,
    train,
)
from benchmarks.lab.training import Setting, World

Curve = dict[int, float]


@dataclass
class LabRun:
    """A run of a group.

    Args:
        setting: Its job.
        change: What happened to it.
        first: The step before its first row; earlier rows are its twin's.
        series: What the agent would have sent.
        curve: Held-out losses by step, untouched.
        truth: Its forks; None if it ends unhurt.
    """

    setting: Setting
    change: Change
    first: int
    series: Series
    curve: Curve
    truth: Truth | None = None

    @property
    def split(self) -> str:
        """Whether it sets rules (`fit`) or tests them (`test`)."""
        return FAMILIES[self.setting.family].split

    @property
    def batch(self) -> int:
        """Samples of a step."""
        return FAMILIES[self.setting.family].batch

    @property
    def name(self) -> str:
        """Unique in the lab."""
        return f"{self.setting.name}_{self.change.name}"


@dataclass
class _Trace:
    """What a watched run left behind."""

    series: Series
    curve: Curve
    states: dict[int, State] = field(default_factory=dict)


def run_group(
    setting: Setting,
    kinds: Sequence[type[Change]],
    onset: int,
    wanted: Callable[[str], bool] = lambda _: True,
) -> Iterator[LabRun]:
    """Train a healthy job, which is yielded first, and copies of it; compute the truth of each.

    Args:
        setting: The job.
        kinds: What happens, each to a copy of its own; what does not apply is left out.
        onset: The step at which it happens.
        wanted: Tells by its name whether a run is to be yielded.
    """
    world = World(setting)
    healthy = healthy_change(setting)
    points = [onset + later for later in GRID if onset + later < setting.steps]
    kept = {*range(0, setting.steps, SNAPSHOT_EVERY), *points}
    twin = _watch(world, world.first_state(Member(healthy)), kept)
    snapshots = {s: state for s, state in twin.states.items() if s % SNAPSHOT_EVERY == 0}
    shared: Rollbacks = {}
    runs = [LabRun(setting, healthy, 0, twin.series, twin.curve)]
    runs[0].truth = Truth(healthy, points, snapshots, twin.states, shared, world.batch)
    before = {s: state for s, state in snapshots.items() if s <= max(0, onset - MARGIN)}
    start = twin.states[onset]
    earlier = {step: loss for step, loss in twin.curve.items() if step <= onset}
    for kind in kinds:
        change = change_of(setting, kind, onset)
        run = LabRun(setting, change, onset, twin.series, earlier)
        if not kind.applies(world) or not wanted(run.name):
            continue
        member = start.member.copy()
        member.change = change
        trace = _watch(world, State(member, start.weights, start.moments), set(points))
        run.series, run.curve = trace.series, earlier | trace.curve
        if is_hurt(change, run.curve, twin.curve, setting.steps):
            at = trace.states | {onset: start}
            run.truth = Truth(change, points, before, at, shared, world.batch)
        runs.append(run)
    runs = [run for run in runs if wanted(run.name)]
    train(world, (run.truth for run in runs if run.truth is not None))
    yield from runs


def _watch(world: World, state: State, kept: set[int]) -> _Trace:
    run = WatchedRun(world, state)
    curve: Curve = {}
    states = {state.member.step: state}
    while (step := run.members[0].step) < world.setting.steps:
        if step in kept:
            states[step] = run.state()
        run.advance()
        if is_evaluated(step + 1, world.setting.steps):
            curve[step + 1] = world.evaluate(run.weights)[0]
    run.close()
    return _Trace(run.series(), curve, states)


def healthy_change(setting: Setting) -> Change:
    """Return the change that never comes."""
    return Change(setting.steps + 1, np.random.default_rng(0))


def change_of(setting: Setting, kind: type[Change], onset: int) -> Change:
    """Return a change of a job, as strong as its seed says."""
    return kind(onset, np.random.default_rng([setting.seed, zlib.crc32(kind.name.encode())]))
