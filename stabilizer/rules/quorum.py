"""Quorums: series that are flagged together, all of a rule or those of each group by themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from stabilizer.protocol.series import SeriesKey
from stabilizer.rules.alerting import AlertSample, judged_instances
from stabilizer.rules.detectors.interface import BoolArray, Detection, FloatArray, State, grown
from stabilizer.rules.selection import Selection
from stabilizer.rules.spec import ALL, GroupsSpec, RuleSpec, SelectSpec

MOST_NAMED: Final = 4
"""Groups that a message names."""
_WHOLE: Final = ""
"""The name of the only group of a rule without `by`."""


def needed(quorum: float, available: int) -> int:
    """Return how many of those available a quorum asks for: a count from 1, or a share."""
    return int(quorum) if quorum >= 1 else max(1, math.ceil(quorum * available))


class Quorum:
    """Combines the verdicts on the series of a rule.

    Without `by` the rule has one alert, with it one of each group, and with `groups` one again:
    that enough groups, or no more than so many, meet the quorum. A series that is not measured at
    a step counts as it did when it last was.
    """

    def __init__(self, spec: RuleSpec, select: SelectSpec, selection: Selection) -> None:
        self._quorum = spec.quorum or 1.0
        self._by = spec.by
        self._groups = spec.groups
        self._message = spec.message
        self._select = select
        self._selection = selection
        self._flagged = np.empty(0, np.bool_)
        self._judged = np.empty(0, np.bool_)
        self._group_of = np.empty(0, np.int64)  # -1: the series lacks the label
        self._values: list[str] = [_WHOLE] if self._by is None else []  # of the label, by group
        self.names: list[str] = []
        """The instances of the rule."""
        self._name()

    def resize(self, series: Sequence[str]) -> None:
        """Make room for more series."""
        self._flagged = grown(self._flagged, len(series), 0)
        self._judged = grown(self._judged, len(series), 0)
        known = len(self._group_of)
        groups = [self._find_group(text) for text in series[known:]]
        self._group_of = np.concatenate([self._group_of, np.array(groups, np.int64)])
        self._name()

    def _find_group(self, series: str) -> int:
        if self._by is None:
            return 0
        value = SeriesKey.parse(series).labels.get(self._by)
        if value is None:
            return -1
        if value not in self._values:
            self._values.append(value)
        return self._values.index(value)

    def _name(self) -> None:
        if self._by is None or self._groups is not None:
            self.names = [str(self._select)]
        else:
            by = self._by
            self.names = [self._select.describe({by: value}) for value in self._values]

    def note_clear(self, verdict: Detection) -> None:
        """Take note of a verdict without a flag."""
        self._flagged[verdict.known] = False
        self._judged |= verdict.known

    def note_clear_rows(self, rows: Iterable[int]) -> None:
        """Take note that a few series were judged and are not flagged."""
        for row in rows:
            self._flagged[row] = False
            self._judged[row] = True

    def combine(self, samples: FloatArray, verdict: Detection) -> AlertSample:
        """Return the state of every instance after a verdict on the series."""
        np.copyto(self._flagged, verdict.flagged, where=verdict.known)
        self._judged |= verdict.known
        chosen = self._selection.chosen & (self._group_of >= 0)
        sizes = self._count(chosen)
        counts = self._count(self._flagged & chosen)
        limits = np.array([needed(self._quorum, size) for size in sizes.tolist()])
        is_met = (counts >= limits) & (counts > 0)
        worst = self._worst(verdict)
        shown = np.flatnonzero(is_met if self._by is not None else np.array([worst[0] >= 0]))
        parts = [self._describe(g, counts, sizes, limits, worst) for g in shown[:MOST_NAMED]]
        message = " ".join([*parts, self._message]).strip()
        known = self._count(verdict.known & (self._group_of >= 0)) > 0
        if self._groups is not None:
            judged = int((self._count(self._judged & chosen) > 0).sum())
            enough = _are_enough(self._groups, int(is_met.sum()), judged)
            top = np.array([_largest(verdict.score, worst)])
            return _sample(
                np.array([known.any()]), np.array([enough]), top, samples, verdict, message
            )
        return _sample(known, is_met & known, worst, samples, verdict, message)

    def _count(self, rows: BoolArray) -> npt.NDArray[np.int64]:
        return np.bincount(self._group_of[rows], minlength=len(self._values))

    def _worst(self, verdict: Detection) -> npt.NDArray[np.int64]:
        """Return the row of the most extreme flagged series of every group; -1 for none."""
        worst = np.full(len(self._values), -1, np.int64)
        rows = np.flatnonzero(verdict.flagged & (self._group_of >= 0))
        groups = self._group_of[rows]
        for group in np.unique(groups).tolist():
            own = rows[groups == group]
            worst[group] = own[np.nanargmax(np.abs(verdict.score[own]))]
        return worst

    def _describe(
        self,
        group: int,
        counts: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        limits: npt.NDArray[np.int64],
        worst: npt.NDArray[np.int64],
    ) -> str:
        name = "" if self._by is None else f"{self._by} {self._values[group]}: "
        text = f"{name}{counts[group]} of {sizes[group]} series, {limits[group]} needed"
        row = int(worst[group])
        return text + (f"; most at {self._selection.series[row]}." if row >= 0 else ".")

    def reset(self) -> None:
        """Forget which series are flagged: a new attempt begins."""
        self._flagged[:] = False
        self._judged[:] = False

    def state(self) -> State:
        """Return the arrays."""
        arrays = {"flagged": self._flagged}
        return arrays if self._groups is None else {**arrays, "judged": self._judged}

    def load(self, state: State, series: Sequence[str]) -> None:
        """Take over the arrays."""
        self.resize(series)
        self._flagged = np.array(state["flagged"], np.bool_)
        if self._groups is not None:
            self._judged = np.array(state["judged"], np.bool_)


def _are_enough(groups: GroupsSpec, met: int, judged: int) -> bool:
    """Return whether so many groups of those judged meet the rule.

    `all` needs two at least, and `most` a group more that is calm: of a single source it cannot be
    said that it is alone.
    """
    if groups.most is not None and (met > groups.most or judged <= met):
        return False
    if groups.least == ALL:
        return met >= max(2, judged)
    return met >= needed(float(groups.least), judged)


def _largest(score: FloatArray, rows: npt.NDArray[np.int64]) -> int:
    found = rows[rows >= 0]
    return int(found[np.nanargmax(np.abs(score[found]))]) if found.size else -1


def _sample(
    known: BoolArray,
    flagged: BoolArray,
    rows: npt.NDArray[np.int64],
    samples: FloatArray,
    verdict: Detection,
    message: str,
) -> AlertSample:
    has_row = rows >= 0
    values, scores = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    values[has_row] = samples[rows[has_row]]
    scores[has_row] = verdict.score[rows[has_row]]
    rows_known = np.flatnonzero(known).tolist()
    return AlertSample(judged_instances(rows_known, flagged, values, scores), message)
