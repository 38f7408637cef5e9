"""The truth of a run, computed: what every action on a fixed grid would have led to.

At the onset of a change and 10, 25, 50, 100 and 200 steps after it a job that ends hurt is forked
from a snapshot and continued to its end: with a cut rate, rolled back, and rolled back past the
data. So is a healthy job. The outcome is the held-out loss of the last steps. No rule is read here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from benchmarks.lab.members import Change, Member, State
from benchmarks.lab.training import Ensemble, World

GRID: Final = (0, 10, 25, 50, 100, 200)
"""Steps after the onset."""
SNAPSHOT_EVERY: Final = 25
MARGIN: Final = 25
"""A rollback goes to the newest snapshot at least so many steps before the onset."""
HURT: Final = 1.05
"""A run is hurt, or not rescued, above so much of its reference."""
DOUBTFUL: Final = (1.03, 1.08)
"""Between these ratios a run counts as neither hurt nor unharmed: `either`."""
SKIP: Final = 200
"""Steps' worth of data that a skip leaves out, from the restored position on."""
EVALUATE_EVERY: Final = 20
LAST: Final = (20, 10, 0)
"""Steps before the end whose held-out losses are averaged as the outcome."""
_TOGETHER: Final = 32
"""Forks that train in step."""


@dataclass(frozen=True)
class Action:
    """What is done at a point: a rollback or not, samples skipped, the rate cut from then on."""

    name: str
    back: bool = False
    skip: int = 0
    cut: float = 1.0
    every: int = 1
    """Of how many points of the grid it is tried at one, where points differ."""


ACTIONS: Final = (
    Action("cut", cut=0.5),
    Action("deep_cut", cut=0.1, every=2),
    Action("rollback", back=True),
    Action("rollback_skip", back=True, skip=SKIP, every=2),
    Action("rollback_cut", back=True, cut=0.5, every=2),
    Action("rollback_deep_cut", back=True, cut=0.1, every=len(GRID)),
)


@dataclass
class Fork:
    """A continuation to the end.

    Args:
        action: What was done.
        start: The step from which it continues; rollbacks from several points share one.
        state: Where it begins.
        curve: Held-out losses by step.
    """

    action: Action
    start: int
    state: State
    curve: dict[int, float] = field(default_factory=dict)

    def note(self, step: int, loss: float, end: int) -> None:
        """Note a held-out loss; what is not finite stays so to the end."""
        self.curve[step] = loss
        if math.isinf(loss):
            later = (each for each in range(step, end + 1) if is_evaluated(each, end))
            self.curve |= dict.fromkeys(later, math.inf)


def outcome(curve: Mapping[int, float], end: int) -> float:
    """Return the mean held-out loss of the last evaluations up to a step."""
    steps = sorted(step for step in curve if step <= end)
    return float(np.mean([curve[step] for step in steps[-len(LAST) :]]))


def is_hurt(change: Change, own: Mapping[int, float], twin: Mapping[int, float], end: int) -> bool:
    """Return whether a run ends above its reference: only then is there something to rescue."""
    is_reference = change.kind == "lookalike" and change.environment
    return not is_reference and not outcome(own, end) <= DOUBTFUL[0] * outcome(twin, end)


Rollbacks = dict[tuple[str, int], Fork]
"""Forks of a group by action and start, of rollbacks that undo all that happened: a twin's."""


class Truth:
    """The forks of a job, from its snapshots; `train` trains them.

    Args:
        change: What happens to it.
        points: Steps of the grid.
        before: Snapshots to roll back to, by step.
        at: States at the points, by step.
        shared: Rollbacks of the group that are known already; new ones are added.
        batch: Samples of a step.
    """

    def __init__(
        self,
        change: Change,
        points: Sequence[int],
        before: Mapping[int, State],
        at: Mapping[int, State],
        shared: Rollbacks,
        batch: int,
    ) -> None:
        self.change = change
        self.points = points
        self.forks: list[Fork] = []
        self._batch = batch
        self._before = before
        self._at = at
        self._shared = {} if change.environment else shared
        self._plan()

    def target(self, point: int) -> int:
        """Return the step of the snapshot that a rollback at a point goes to."""
        known = point if self.change.kind == "healthy" else self.change.onset
        return max(step for step in self._before if step <= max(0, known - MARGIN))

    def find(self, action: str, point: int) -> Fork | None:
        """Return the fork that an action at a point leads to; None if it was not tried there.

        A rollback of a fault leads to the same run whenever it was decided.
        """
        by_start = {fork.start: fork for fork in self.forks if fork.action.name == action}
        is_back = next(each for each in ACTIONS if each.name == action).back
        return by_start.get(self.target(point) if is_back else point)

    def _plan(self) -> None:
        planned: Rollbacks = {}
        for place, point in enumerate(self.points):
            for action in ACTIONS:
                key = action.name, self.target(point) if action.back else point
                if place % action.every == 0 and key not in planned:
                    known = self._shared.get(key) if action.back else None
                    planned[key] = known or Fork(action, key[1], self._begin(action, key[1]))
        self.forks = list(planned.values())
        self._shared |= {key: fork for key, fork in planned.items() if fork.action.back}

    def _begin(self, action: Action, start: int) -> State:
        state = self._before[start] if action.back else self._at[start]
        member: Member = state.member.copy()
        member.change, member.cut = self.change, action.cut
        if action.back:
            member.struck = True
            member.position += action.skip * self._batch
        return State(member, state.weights, state.moments)


def train(world: World, truths: Iterable[Truth]) -> None:
    """Train the forks of a group to the end, in batches that begin close to each other."""
    planned = {id(fork): fork for truth in truths for fork in truth.forks}  # some are shared
    forks = sorted(planned.values(), key=lambda fork: fork.start)
    for first in range(0, len(forks), _TOGETHER):
        _train_together(world, forks[first : first + _TOGETHER])


def _train_together(world: World, forks: list[Fork]) -> None:
    end = world.setting.steps
    ensemble = Ensemble(world, [fork.state for fork in forks])
    while forks:
        ensemble.step()
        members = ensemble.members
        due = [i for i, member in enumerate(members) if is_evaluated(member.step, end)]
        if not due:
            continue
        losses = world.evaluate(ensemble.weights[due])
        for index, loss in zip(due, losses, strict=True):
            forks[index].note(members[index].step, loss, end)
        going = [index for index, fork in enumerate(forks) if end not in fork.curve]
        if len(going) < len(forks):
            forks = [forks[index] for index in going]
            if forks:
                ensemble.keep(going)


def is_evaluated(step: int, end: int) -> bool:
    """Return whether the held-out loss of a step is computed."""
    return step % EVALUATE_EVERY == 0 or end - step in LAST
