"""The loss of many runs at a glance, without reading their histories again and again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from stabilizer.clock import Clock
from stabilizer.collector.services.views.trace import Trace
from stabilizer.collector.storage.models import RunRow
from stabilizer.collector.storage.repositories import Repositories
from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.metrics import Metric
from stabilizer.protocol.runs import Branch
from stabilizer.protocol.views import Sparkline

MAX_POINTS: Final = 64
MAX_STATES: Final = 2000
"""Runs in memory, at most 12 KiB each; the one unused for longest is read anew when needed."""
BUILD_SECONDS: Final = 0.5
"""How long one call may read histories; the next one goes on where it stopped."""
SMALL_BACKLOG: Final = 256
"""Changes of a run that are read together with those of other runs."""

Branches = tuple[Branch, ...]
Slots = Mapping[str, int]
"""Where the loss stands in each catalog of a run that has it."""


@dataclass(slots=True)
class _State:
    """What is known of a run's loss."""

    version: int = -1
    """The run's version up to which its batches are in."""
    branches: Branches = ()
    trace: Trace = field(default_factory=Trace)
    is_whole: bool = False
    """The history has been read to its end once."""
    shown: Sparkline | None = None


class Sparklines:
    """Keeps the loss of the live lineage of each run, reduced, and adds what has come since.

    Safe for many threads: one at a time.

    Args:
        clock: Ends a call that would read for too long.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._states: OrderedDict[str, _State] = OrderedDict()
        self._guard = threading.Lock()

    def of_runs(
        self, repos: Repositories, runs: Sequence[RunRow], branches: Mapping[str, Branches]
    ) -> dict[str, Sparkline]:
        """Return the sparklines of runs; those without any loss, or not read yet, are left out.

        Args:
            repos: Of a session that sees the runs as given.
            runs: Rows of a list.
            branches: The attempts of each run with their live parts.
        """
        with self._guard:
            states = {run.id: self._state(run.id) for run in runs}
            # A state may be ahead of this session, and is then the better one.
            stale = [run for run in runs if states[run.id].version < run.version]
            if stale:
                slots = repos.catalogs.places_in_runs([run.id for run in stale], Metric.LOSS)
                _Refresh(repos, states, slots, self._clock).run(stale, branches)
            while len(self._states) > MAX_STATES:
                self._states.popitem(last=False)
            return {
                run_id: state.shown for run_id, state in states.items() if state.shown is not None
            }

    def _state(self, run_id: str) -> _State:
        state = self._states.setdefault(run_id, _State())
        self._states.move_to_end(run_id)
        return state


@dataclass(slots=True)
class _Refresh:
    """Brings states up to date in one session."""

    repos: Repositories
    states: Mapping[str, _State]
    slots: Mapping[str, Slots]
    clock: Clock

    def run(self, stale: Sequence[RunRow], branches: Mapping[str, Branches]) -> None:
        """Read what has come; small backlogs together, long histories one by one."""
        for run in stale:
            self._follow_lineage(run.id, branches[run.id])
        small = [run for run in stale if self._is_small(run)]
        self._read_together(small)
        deadline = self.clock.monotonic() + BUILD_SECONDS
        for run in stale:
            if run in small:
                continue
            self._read_on(run, deadline)
            if self.clock.monotonic() > deadline:
                break
        for run in stale:
            _show(self.states[run.id])

    def _is_small(self, run: RunRow) -> bool:
        state = self.states[run.id]
        return state.is_whole and run.version - state.version <= SMALL_BACKLOG

    def _follow_lineage(self, run_id: str, branches: Branches) -> None:
        """Forget what a rollback has left; read again what shared a bucket with it."""
        state = self.states[run_id]
        changed = _first_changed_step(state.branches, branches)
        state.branches = branches
        if changed is None:
            return
        if not state.is_whole:
            state.version, state.trace = -1, Trace()
            return
        first = state.trace.cut(changed)
        for catalog_id in self.slots.get(run_id, {}):
            for attempt, block in self.repos.frames.read(run_id, catalog_id, None, (first, None)):
                self._add(run_id, attempt, block, first_step=first)

    def _read_together(self, runs: Sequence[RunRow]) -> None:
        since = {run.id: self.states[run.id].version for run in runs if run.id in self.slots}
        catalogs = {catalog_id for run_id in since for catalog_id in self.slots[run_id]}
        for run_id, attempt, block in self.repos.frames.arrived(since, catalogs):
            self._add(run_id, attempt, block)
        for run in runs:
            self.states[run.id].version = run.version

    def _read_on(self, run: RunRow, deadline: float) -> None:
        state = self.states[run.id]
        for number, (version, blocks) in enumerate(self._history(run.id, state.version)):
            if number and self.clock.monotonic() > deadline:
                return
            for attempt, block in blocks:
                self._add(run.id, attempt, block)
            # Other blocks of the same batch may follow: it is read again, which does no harm.
            state.version = version - 1
        state.version, state.is_whole = run.version, True

    def _history(
        self, run_id: str, version: int
    ) -> Iterator[tuple[int, list[tuple[int, FrameBlock]]]]:
        catalogs = self.slots.get(run_id)
        return self.repos.frames.history(run_id, version, list(catalogs)) if catalogs else iter(())

    def _add(self, run_id: str, attempt: int, block: FrameBlock, *, first_step: int = 0) -> None:
        state = self.states[run_id]
        slot = self.slots[run_id].get(block.catalog)
        branch = next((one for one in state.branches if one.attempt == attempt), None)
        if slot is None or branch is None:
            return
        taken = block.steps >= first_step
        if branch.live_to is not None:
            taken &= block.steps <= branch.live_to
        if block.present is not None:
            taken &= block.present[:, slot]
        if taken.any():
            state.trace.add(block.steps[taken], block.values[taken, slot])


def _first_changed_step(before: Branches, after: Branches) -> int | None:
    """Return the first step at which a sample that was live is none any more, or the reverse.

    What a new attempt measures comes after it, and is no change of what there was.
    """
    old = {branch.attempt: branch.live_to for branch in before}
    changed = []
    for branch in after:
        pair = (old.get(branch.attempt, branch.live_to), branch.live_to)
        ends = [end for end in pair if end is not None]
        if pair[0] != pair[1]:
            changed.append(max(branch.from_step, min(ends) + 1))
    return min(changed, default=None)


def _show(state: _State) -> None:
    if not state.is_whole:
        return
    if not len(state.trace):
        state.shown = None
        return
    steps, values = state.trace.points(MAX_POINTS)
    state.shown = Sparkline(steps=tuple(steps.tolist()), values=tuple(values.tolist()))
