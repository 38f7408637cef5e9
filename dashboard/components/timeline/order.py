"""The order of the log book: by time, and for what only a step is known of, by when it was."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate

from dashboard.components.timeline.entry import Entry, EntryKind
from dashboard.words.amounts import utc
from stabilizer.protocol.runs import Attempt


class StepClock:
    """Tells about when an attempt was at a step, from entries that know both.

    Times within an attempt never go back: who reports late is taken at the latest time before.
    """

    def __init__(self, entries: Iterable[Entry], attempts: Sequence[Attempt]) -> None:
        known: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
        for attempt in attempts:
            start = utc(attempt.started_at).timestamp()
            known[attempt.number].append((attempt.from_step, start))
        for entry in entries:
            time = _time(entry)
            if entry.kind not in _PUNCTUAL or entry.attempt is None or entry.step is None:
                continue
            if time is not None:
                known[entry.attempt].append((entry.step, time))
        self._steps: dict[int, list[int]] = {}
        self._times: dict[int, list[float]] = {}
        for number, places in known.items():
            places.sort()
            self._steps[number] = [step for step, _ in places]
            self._times[number] = list(accumulate((time for _, time in places), max))

    def time_of(self, attempt: int, step: int) -> float:
        """Return about when it was, in seconds since the epoch.

        Between two known places it is on the straight line; beyond them, the nearest.
        """
        steps, times = self._steps.get(attempt), self._times.get(attempt)
        if not steps or not times:
            return self._end_before(attempt)
        after = bisect_right(steps, step)
        if after == 0 or steps[after - 1] == step or after == len(steps):
            return times[max(after - 1, 0)]
        way = (step - steps[after - 1]) / (steps[after] - steps[after - 1])
        return times[after - 1] + way * (times[after] - times[after - 1])

    def _end_before(self, attempt: int) -> float:
        earlier = [times[-1] for number, times in self._times.items() if number < attempt]
        return max(earlier, default=0.0)


def newest_first(entries: Sequence[Entry], attempts: Sequence[Attempt]) -> list[Entry]:
    """Sort the log book. At the same time: what was seen lies below what was decided on it."""
    clock = StepClock(entries, attempts)

    def place(numbered: tuple[int, Entry]) -> tuple[float, float, float, int, int]:
        position, entry = numbered
        time = _time(entry)
        if time is None:
            time = clock.time_of(entry.attempt or 0, entry.step or 0)
        return time, *_standing(entry), _RANKS[entry.kind], position

    return [entry for _, entry in sorted(enumerate(entries), key=place, reverse=True)]


_RANKS = {
    EntryKind.JOB: 0,
    EntryKind.SEEN: 1,
    EntryKind.DONE: 2,
    EntryKind.REFUSED: 2,
    EntryKind.DECIDED: 3,
    EntryKind.ORDERED: 4,
    EntryKind.SETTING: 5,
}


_PUNCTUAL = frozenset({EntryKind.DECIDED, EntryKind.ORDERED, EntryKind.JOB})
"""Heard of at the step that they name; a job's results may come much later."""


def _standing(entry: Entry) -> tuple[float, float]:
    """Order what was written down at the same time; what names no step followed from the rest."""
    attempt = math.inf if entry.attempt is None else entry.attempt
    return attempt, math.inf if entry.step is None else entry.step


def _time(entry: Entry) -> float | None:
    return None if entry.at is None else utc(entry.at).timestamp()
