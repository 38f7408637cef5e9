"""Sparklines of the loss of many runs, updated incrementally."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from stabilizer.clock import Clock
from stabilizer.collector.services.frames.reduction import reduce_extremes
from stabilizer.collector.storage.models import RunRow
from stabilizer.collector.storage.repositories import Repositories
from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.metrics import Metric
from stabilizer.protocol.runs import Branch
from stabilizer.protocol.views import Sparkline

Steps = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32]

MAX_BUCKETS: Final = 96
MAX_SAMPLES: Final = 1024
"""Samples kept before thinning; at least four per bucket, plus room for new ones."""
MAX_POINTS: Final = 64
MAX_STATES: Final = 2000
"""Runs in memory, at most 12 KiB each; the least recently used one is evicted."""
BUILD_SECONDS: Final = 0.5
"""Time limit for reading histories in one call; the next call continues."""
SMALL_BACKLOG: Final = 256
"""A run with at most so many new versions is read together with other runs."""

Branches = tuple[Branch, ...]
Slots = Mapping[str, int]
"""Catalog id to the slot of the loss."""


class Trace:
    """A series of any length in bounded memory, without losing an extreme.

    Keeps the first minimum, first maximum, first non-finite and last sample of each bucket of
    steps. Buckets start at multiples of their width, which doubles when there are too many. The
    result depends neither on the order of samples nor on duplicates.
    """

    def __init__(self) -> None:
        self._width = 1
        self._steps: Steps = np.empty(0, np.int64)
        self._values: Values = np.empty(0, np.float32)

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, steps: Steps, values: Values) -> None:
        """Add samples in any order; the last one given for a step counts.

        Args:
            steps: Shape [K].
            values: Shape [K]; NaN and Inf are data.
        """
        self._steps = np.concatenate([self._steps, steps])
        self._values = np.concatenate([self._values, values])
        if len(self._steps) > MAX_SAMPLES:
            self._thin()

    def cut(self, step: int) -> int:
        """Drop the bucket of a step and all later ones.

        Returns:
            The first dropped step; samples from there on that are still valid must be added again.
        """
        first = step // self._width * self._width
        kept = self._steps < first
        self._steps, self._values = self._steps[kept], self._values[kept]
        return first

    def points(self, max_points: int) -> tuple[Steps, Values]:
        """Return at most `max_points` (4 or more) samples, steps ascending, extremes kept."""
        self._sort()
        kept = reduce_extremes(self._values, max_points)
        return self._steps[kept], self._values[kept]

    def _sort(self) -> None:
        # Reversed: `unique` returns the first of equal steps, and the last one given counts.
        steps, first = np.unique(self._steps[::-1], return_index=True)
        self._steps, self._values = steps, self._values[::-1][first]

    def _thin(self) -> None:
        self._sort()
        while len(np.unique(self._steps // self._width)) > MAX_BUCKETS:
            self._width *= 2
        kept = _extremes(self._steps // self._width, self._values)
        self._steps, self._values = self._steps[kept], self._values[kept]


def _extremes(buckets: Steps, values: Values) -> npt.NDArray[np.intp]:
    """Select the first minimum, first maximum, first non-finite and last sample per bucket."""
    finite = np.isfinite(values)
    starts = np.flatnonzero(np.diff(buckets, prepend=buckets[0] - 1))
    # A stable sort within buckets: the first of each is the earliest among equals.
    lowest = np.lexsort((np.where(finite, values, np.inf), buckets))[starts]
    highest = np.lexsort((np.where(finite, -values, np.inf), buckets))[starts]
    broken = np.lexsort((finite, buckets))[starts]
    last = np.append(starts[1:], len(values)) - 1
    return np.unique(
        np.concatenate(
            [lowest[finite[lowest]], highest[finite[highest]], broken[~finite[broken]], last]
        )
    )


@dataclass(slots=True)
class _State:
    """The loss of one run, as far as it has been read."""

    version: int = -1
    """The run's version up to which batches have been read."""
    branches: Branches = ()
    trace: Trace = field(default_factory=Trace)
    is_whole: bool = False
    """The history has been read completely."""
    shown: Sparkline | None = None


class Sparklines:
    """Caches the reduced loss of each run's live lineage and adds new batches. Thread-safe.

    Args:
        clock: Limits the time of one call.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._states: OrderedDict[str, _State] = OrderedDict()
        self._guard = threading.Lock()

    def of_runs(
        self, repos: Repositories, runs: Sequence[RunRow], branches: Mapping[str, Branches]
    ) -> dict[str, Sparkline]:
        """Return the sparklines of runs; those without a loss or not read yet are absent.

        Args:
            repos: Of the session that read `runs`.
            runs: Rows of a page.
            branches: The live lineage of each run.
        """
        with self._guard:
            states = {run.id: self._state(run.id) for run in runs}
            # A state may be ahead of this session: keep it.
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
        """Read new batches; small backlogs together, long histories one by one."""
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
        """Drop abandoned steps; read the buckets that held them again."""
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
            # More blocks of this batch may follow: read it again, which is harmless.
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
    """Return the first step whose samples became live or ceased to be; None if no step did.

    New samples of a new attempt are no change.
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
