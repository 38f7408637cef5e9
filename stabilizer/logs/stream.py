"""From the rows of a log to what a job would have sent: attempts, catalogs, frames.

What a log can do, and what it means:

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
from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.metrics import Metric
from stabilizer.protocol.series import MAX_SERIES_PER_CATALOG, Catalog, SeriesKey

_EVERY_STEP: Final = frozenset(
    {Metric.LOSS, Metric.LOSS_TOTAL, Metric.Z_LOSS, Metric.GRAD_NORM, Metric.LR}
    | {Metric.LR_SCALE, Metric.STEP_SECONDS, Metric.NONFINITE}
)
_NUM_PARTS: Final = 3
_MAX_MAPPINGS: Final = 1000

IndexArray = npt.NDArray[np.intp]


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
    """

    attempt: int
    starts_attempt: bool
    step: int
    time: float | None
    frames: tuple[tuple[Catalog, FrameBlock], ...]
    from_step: int | None = None
    reason: MarkerKind = MarkerKind.RESUME
    markers: tuple[Marker, ...] = ()


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
class _Mapping:
    """Where the columns of a row go.

    Args:
        sources: Positions in the row, by part.
        targets: Columns of the part's catalog, by part.
    """

    sources: tuple[IndexArray, ...]
    targets: tuple[IndexArray, ...]


class LogStream:
    """Builds the steps of one run from its rows."""

    def __init__(self) -> None:
        self.problems = LogProblems()
        self._parts = tuple(_Part() for _ in range(_NUM_PARTS))
        self._slots: dict[SeriesKey, tuple[int, int]] = {}
        self._mappings: dict[tuple[str, ...], _Mapping] = {}
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
        mapping = self._map(row.columns)
        return any(
            bool(
                (
                    self._latest[part][mapping.targets[part]][self._there(row, part)] >= row.step
                ).any()
            )
            for part in range(_NUM_PARTS)
        )

    def _note(self, row: LogRow) -> None:
        mapping = self._map(row.columns)
        for part in range(_NUM_PARTS):
            targets = mapping.targets[part]
            if targets.size:
                self._latest[part][targets[self._there(row, part)]] = row.step

    def _there(self, row: LogRow, part: int) -> npt.NDArray[np.bool_] | slice:
        if row.present is None:
            return slice(None)
        return row.present[self._map(row.columns).sources[part]]

    def _frames(self, rows: list[LogRow]) -> Iterator[tuple[Catalog, FrameBlock]]:
        time = next((row.time for row in reversed(rows) if row.time is not None), 0.0)
        for part, catalog in enumerate(self._parts):
            values = np.zeros(len(catalog.keys), np.float32)
            present = np.zeros(len(catalog.keys), np.bool_)
            for row in rows:
                mapping = self._map(row.columns)
                there = self._there(row, part)
                targets = mapping.targets[part][there]
                with np.errstate(over="ignore"):  # beyond float32 is Inf, which is data
                    values[targets] = row.values[mapping.sources[part][there]]
                present[targets] = True
            if present.any():
                yield (
                    catalog.catalog,
                    FrameBlock(
                        catalog=catalog.catalog.id,
                        steps=np.array([rows[0].step], np.int64),
                        times=np.array([time], np.float64),
                        values=values[None],
                        present=None if present.all() else present[None],
                    ),
                )

    def _map(self, columns: tuple[str, ...]) -> _Mapping:
        mapping = self._mappings.get(columns)
        if mapping is None:
            if len(self._mappings) >= _MAX_MAPPINGS:
                self._mappings.clear()
            mapping = self._mappings[columns] = self._make_mapping(columns)
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
        return _Mapping(
            tuple(np.array(part, np.intp) for part in sources),
            tuple(np.array(part, np.intp) for part in targets),
        )

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
