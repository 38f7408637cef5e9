"""Converts the rows of a log to what a job would have sent: attempts, catalogs, frames.

How a log is interpreted:

- The same step again adds to it; a series that is repeated there counts as it was written last.
- A step that goes back begins a new attempt, as a restarted job does. A row that goes back and
  repeats no series is late (evaluation results, another writer) and left out.
- Steps may be missing, however many: the rules count steps.
- A series may begin at any row. Catalogs are those of the agent: what is measured at every step,
  what is measured of modules, and what the user logs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from stabilizer.logs.names import series_of
from stabilizer.logs.rows import LogProblems, LogRow
from stabilizer.protocol.batches import Marker, MarkerKind
from stabilizer.protocol.frames import Float32Array, FrameBlock
from stabilizer.protocol.metrics import Metric
from stabilizer.protocol.runs import Tick
from stabilizer.protocol.series import MAX_SERIES_PER_CATALOG, Catalog, SeriesKey

_EVERY_STEP: Final = frozenset(
    {Metric.LOSS, Metric.LOSS_TOTAL, Metric.Z_LOSS, Metric.GRAD_NORM, Metric.LR}
    | {Metric.LR_SCALE, Metric.STEP_SECONDS, Metric.NONFINITE}
)
_NUM_PARTS: Final = 3
_MAX_MAPPINGS: Final = 1000

IndexArray = npt.NDArray[np.intp]
BoolArray = npt.NDArray[np.bool_]
_Read = tuple[Float32Array, BoolArray | None]
"""Values of shape [N]; their presence of shape [1, N], None if all were measured."""


@dataclass(frozen=True, slots=True, eq=False)
class LogStep:
    """The frames of one step.

    Args:
        attempt: From 1.
        starts_attempt: It is the first step of its attempt.
        step: Completed optimizer steps.
        time: Seconds since the epoch; None if the log does not give it.
        frames: One frame for each catalog with a value.
        from_step: Where the attempt starts, if that is known.
        reason: Why the attempt starts.
        markers: Events before the step.
        ticks: What a clock showed before the step.
    """

    attempt: int
    starts_attempt: bool
    step: int
    time: float | None
    frames: tuple[tuple[Catalog, FrameBlock], ...]
    from_step: int | None = None
    reason: MarkerKind = MarkerKind.RESUME
    markers: tuple[Marker, ...] = ()
    ticks: tuple[Tick, ...] = ()


class _Part:
    """A catalog that grows: its columns never move, its id changes when it grows."""

    def __init__(self) -> None:
        self.keys: list[SeriesKey] = []
        self._catalog: Catalog | None = None

    @property
    def catalog(self) -> Catalog:
        if self._catalog is None or len(self._catalog) != len(self.keys):
            self._catalog = Catalog.of(self.keys)
        return self._catalog


@dataclass(frozen=True, slots=True, eq=False)
class _Route:
    """Where the columns of a row that belong to one catalog go.

    Args:
        part: Index of the catalog.
        sources: Positions in the row.
        targets: Columns of the catalog.
        in_order: The targets are 0, 1, 2, ...
    """

    part: int
    sources: IndexArray
    targets: IndexArray
    in_order: bool


@dataclass(slots=True, eq=False)
class _Mapping:
    """Where the columns of a row go."""

    routes: tuple[_Route, ...]
    full_step: int = -1
    """Newest step of the attempt at which all of the columns had a value."""


class LogStream:
    """Builds the steps of one run from its rows."""

    def __init__(self) -> None:
        self.problems = LogProblems()
        self._parts = tuple(_Part() for _ in range(_NUM_PARTS))
        self._slots: dict[SeriesKey, tuple[int, int]] = {}
        self._mappings: dict[tuple[str, ...], _Mapping] = {}
        self._columns: tuple[str, ...] | None = None
        self._mapping = _Mapping(())
        self._latest = tuple(np.empty(0, np.int64) for _ in range(_NUM_PARTS))
        self._pending: list[LogRow] = []
        self._step = -1
        self._attempt = 0
        self._given_attempt: int | None = None
        self._starts_attempt = False

    def push(self, row: LogRow) -> Iterator[LogStep]:
        """Add a row; return the steps that are complete now."""
        if self._begins_attempt(row):
            yield from self.flush()
            self.problems.restarts += self._attempt > 0
            self._attempt += 1
            self._given_attempt = row.attempt
            self._starts_attempt = True
            self._latest = tuple(np.full_like(latest, -1) for latest in self._latest)
            for mapping in self._mappings.values():
                mapping.full_step = -1
        elif row.step < self._step:
            self.problems.late += 1
            return
        elif row.step > self._step:
            yield from self.flush()
        elif self._repeats(row):
            self.problems.duplicates += 1
        self._step = row.step
        self._pending.append(row)
        self._note(row)

    def flush(self) -> Iterator[LogStep]:
        """Return the last step: no more of it will come."""
        rows, self._pending = self._pending, []
        if not rows:
            return
        frames = tuple(self._frames(rows))
        if frames:
            starts, self._starts_attempt = self._starts_attempt, False
            yield LogStep(self._attempt, starts, rows[0].step, rows[-1].time, frames)

    def _begins_attempt(self, row: LogRow) -> bool:
        if self._attempt == 0 or row.attempt != self._given_attempt:
            return True
        return row.step < self._step and self._repeats(row)

    def _repeats(self, row: LogRow) -> bool:
        """Return whether a series of the row has a value at its step or later."""
        for mapping in self._mappings.values():
            if mapping.full_step >= row.step:
                self._note_full(mapping)
        return any(
            bool((self._latest[route.part][self._present_targets(row, route)] >= row.step).any())
            for route in self._map(row.columns).routes
        )

    def _note(self, row: LogRow) -> None:
        mapping = self._map(row.columns)
        if row.present is None:  # written into the arrays when they are read, which is rare
            mapping.full_step = row.step
            return
        for route in mapping.routes:
            self._latest[route.part][self._present_targets(row, route)] = row.step

    def _note_full(self, mapping: _Mapping) -> None:
        for route in mapping.routes:
            latest = self._latest[route.part]
            latest[route.targets] = np.maximum(latest[route.targets], mapping.full_step)

    def _present_targets(self, row: LogRow, route: _Route) -> IndexArray:
        if row.present is None:
            return route.targets
        return route.targets[row.present[route.sources]]

    def _frames(self, rows: list[LogRow]) -> Iterator[tuple[Catalog, FrameBlock]]:
        steps = np.array([rows[0].step], np.int64)
        time = next((row.time for row in reversed(rows) if row.time is not None), 0.0)
        times = np.array([time], np.float64)
        for part, known in enumerate(self._parts):
            read = self._read_one(rows[0], part) if len(rows) == 1 else self._read(rows, part)
            if read is not None:
                values, present = read
                catalog = known.catalog
                yield catalog, FrameBlock(catalog.id, steps, times, values[None], present)

    def _read_one(self, row: LogRow, part: int) -> _Read | None:
        """Read a row that is all of its step; most are."""
        route = next((r for r in self._map(row.columns).routes if r.part == part), None)
        if route is None:
            return None
        if not route.in_order or len(route.targets) != len(self._parts[part].keys):
            return self._read([row], part)
        with np.errstate(over="ignore"):  # beyond float32 is Inf, which is data
            values = row.values[route.sources].astype(np.float32)
        if row.present is None:
            return values, None
        present = row.present[route.sources]
        values[~present] = 0
        return _packed(values, present)

    def _read(self, rows: list[LogRow], part: int) -> _Read | None:
        size = len(self._parts[part].keys)
        values, present = np.zeros(size, np.float32), np.zeros(size, np.bool_)
        for row in rows:
            for route in self._map(row.columns).routes:
                if route.part == part:
                    there = slice(None) if row.present is None else row.present[route.sources]
                    with np.errstate(over="ignore"):
                        values[route.targets[there]] = row.values[route.sources[there]]
                    present[route.targets[there]] = True
        return _packed(values, present)

    def _map(self, columns: tuple[str, ...]) -> _Mapping:
        if columns is self._columns:
            return self._mapping
        mapping = self._mappings.get(columns)
        if mapping is None:
            if len(self._mappings) >= _MAX_MAPPINGS:
                for old in self._mappings.values():
                    self._note_full(old)
                self._mappings.clear()
            mapping = self._mappings[columns] = self._make_mapping(columns)
        self._columns, self._mapping = columns, mapping
        return mapping

    def _make_mapping(self, columns: tuple[str, ...]) -> _Mapping:
        sources: list[list[int]] = [[] for _ in range(_NUM_PARTS)]
        targets: list[list[int]] = [[] for _ in range(_NUM_PARTS)]
        seen: set[SeriesKey] = set()
        for index, column in enumerate(columns):
            key = series_of(column)
            slot = None if key in seen else self._slot(key)
            seen.add(key)
            if slot is None:
                self.problems.left_out_series += 1
                continue
            sources[slot[0]].append(index)
            targets[slot[0]].append(slot[1])
        self._latest = tuple(
            np.concatenate([latest, np.full(len(part.keys) - len(latest), -1, np.int64)])
            for latest, part in zip(self._latest, self._parts, strict=True)
        )
        routes = (
            _Route(
                part,
                np.array(sources[part], np.intp),
                np.array(targets[part], np.intp),
                targets[part] == list(range(len(targets[part]))),
            )
            for part in range(_NUM_PARTS)
            if sources[part]
        )
        return _Mapping(tuple(routes))

    def _slot(self, key: SeriesKey) -> tuple[int, int] | None:
        slot = self._slots.get(key)
        if slot is not None:
            return slot
        part = _part_of(key)
        keys = self._parts[part].keys
        if len(keys) >= MAX_SERIES_PER_CATALOG:
            return None
        slot = self._slots[key] = (part, len(keys))
        keys.append(key)
        return slot


def _packed(values: Float32Array, present: BoolArray) -> _Read | None:
    """Return values with the presence of each, None for all of them; None if there are none."""
    if not present.any():
        return None
    return values, None if present.all() else present[None]


def _part_of(key: SeriesKey) -> int:
    if "module" in key.labels:
        return 1
    return 0 if key.metric in _EVERY_STEP and "source" not in key.labels else 2


def steps_of(rows: Iterable[LogRow], stream: LogStream | None = None) -> Iterator[LogStep]:
    """Build the steps of a whole log."""
    stream = stream or LogStream()
    for row in rows:
        yield from stream.push(row)
    yield from stream.flush()
