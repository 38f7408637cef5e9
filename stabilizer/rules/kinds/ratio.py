"""A rule on ratios: each of its series over another one, or over a statistic of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from stabilizer.protocol.batches import MarkerKind
from stabilizer.protocol.frames import Float32Array
from stabilizer.protocol.series import Catalog, SeriesKey
from stabilizer.rules.detector_specs import DetectSpec
from stabilizer.rules.detectors.interface import BoolArray, FloatArray, State, grown, part_of
from stabilizer.rules.outcome import AlertChange
from stabilizer.rules.rule import Frame, Rule
from stabilizer.rules.selection import Selection
from stabilizer.rules.spec import RatioSpec, RuleSpec, SelectSpec, Statistic

_OVER: Final = "over."


class RatioRule(Rule):
    """Evaluates a rule on the ratios of its series to others.

    The others may be of another catalog and measured at other steps: their last values count, if
    they are fresh. A series without a divisor, or with one that is zero or not finite, is not
    measured.
    """

    def __init__(
        self, spec: RuleSpec, select: SelectSpec, detect: DetectSpec, ratio: RatioSpec
    ) -> None:
        super().__init__(spec, select, detect)
        self._divisors = Divisors(ratio)

    def watches(self, catalog: Catalog) -> bool:
        """Return whether it watches a series of a catalog."""
        return self._divisors.watches(catalog) or self._selection.columns(catalog)[0].size > 0

    def _evaluate(self, frame: Frame) -> list[AlertChange]:
        step, values = frame.step, frame.values
        self._divisors.note(step, frame.catalog, values, frame.present)
        columns, rows, _ = self._selection.columns(frame.catalog)
        if columns.size == 0:
            return []
        divisors = self._divisors.of(step, self._selection.series)[rows]
        usable = np.isfinite(divisors) & (divisors != 0)
        if frame.present is not None:
            usable &= frame.present[columns]
        ratios, measured = values.copy(), np.zeros(len(values), np.bool_)
        ratios[columns] = values[columns] / divisors
        measured[columns] = usable
        return super()._evaluate(Frame(frame.attempt, step, frame.catalog, ratios, measured))

    @property
    def note(self) -> str:
        """Why the rule cannot judge yet; empty if it can."""
        return super().note or ("" if self._divisors.series else "over selects nothing")

    def begin_attempt(self, from_step: int, reason: MarkerKind | None) -> list[AlertChange]:
        """End all alerts and forget what was learned after `from_step`."""
        self._divisors.rewind(from_step)
        return super().begin_attempt(from_step, reason)

    def state(self) -> tuple[dict[str, JsonValue], State]:
        """Return what `load` needs: plain data and arrays."""
        head, arrays = super().state()
        own = {f"{_OVER}{name}": array for name, array in self._divisors.state().items()}
        return {**head, "over": self._divisors.selection_state()}, {**arrays, **own}

    def load(self, head: dict[str, Any], arrays: State) -> None:
        """Take over a state.

        Raises:
            KeyError: Something is missing.
            ValueError: An array does not fit.
        """
        super().load(head, arrays)
        self._divisors.load(head["over"], part_of(arrays, _OVER))


class Divisors:
    """The last values of the series that others are divided by."""

    def __init__(self, spec: RatioSpec) -> None:
        self._spec = spec
        self._selection = Selection(spec.over)
        self._values = np.empty(0)
        self._steps = np.empty(0, np.int64)
        self._keys: dict[tuple[str | None, ...], int] = {}  # groups of equal labels
        self._group_of = np.empty(0, np.int64)
        self._group_of_series = np.empty(0, np.int64)  # of those that are divided

    @property
    def series(self) -> list[str]:
        """The series measured so far."""
        return self._selection.series

    def watches(self, catalog: Catalog) -> bool:
        """Return whether a catalog has one of them."""
        return self._selection.columns(catalog)[0].size > 0

    def note(
        self, step: int, catalog: Catalog, values: Float32Array, present: BoolArray | None
    ) -> None:
        """Remember the values of a frame."""
        columns, rows = self._selection.columns(catalog)[:2]
        if columns.size == 0:
            return
        self._resize()
        if present is not None:
            rows, columns = rows[present[columns]], columns[present[columns]]
        self._values[rows] = values[columns]
        self._steps[rows] = step

    def _resize(self) -> None:
        series = self._selection.series
        if len(series) == len(self._values):
            return
        self._values = grown(self._values, len(series), np.nan)
        self._steps = grown(self._steps, len(series), -1)
        self._group_of = self._groups(series, self._group_of)

    def _groups(self, series: Sequence[str], known: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        more = [self._group(text) for text in series[len(known) :]]
        return np.concatenate([known, np.array(more, np.int64)])

    def _group(self, series: str) -> int:
        if not self._spec.same:
            return self._keys.setdefault((), 0)
        labels = SeriesKey.parse(series).labels
        key = tuple(labels.get(name) for name in self._spec.same)
        return self._keys.setdefault(key, len(self._keys))

    def of(self, step: int, series: Sequence[str]) -> FloatArray:
        """Return the divisor of each series; NaN where there is none that is fresh."""
        if len(self._group_of_series) < len(series):
            self._group_of_series = self._groups(series, self._group_of_series)
        fresh = (self._steps >= 0) & (step - self._steps <= self._spec.fresh)
        fresh &= np.isfinite(self._values) & self._selection.chosen[: len(self._values)]
        values, groups = self._values[fresh], self._group_of[fresh]
        combined = _combine(self._spec.take, values, groups, len(self._keys))
        return combined[self._group_of_series]

    def rewind(self, step: int) -> None:
        """Forget values after a step."""
        self._steps[self._steps > step] = -1

    def selection_state(self) -> dict[str, JsonValue]:
        """Return the plain part of the state."""
        return self._selection.state()

    def state(self) -> State:
        """Return the arrays."""
        return {"values": self._values, "steps": self._steps}

    def load(self, selection: dict[str, Any], state: State) -> None:
        """Take over a state."""
        self._selection.load(selection["series"], selection["layers"])
        self._resize()
        self._values = np.array(state["values"], np.float64)
        self._steps = np.array(state["steps"], np.int64)


def _combine(
    take: Statistic, values: FloatArray, groups: npt.NDArray[np.int64], number: int
) -> FloatArray:
    """Return a statistic of the values of every group; NaN for a group without one."""
    result = np.full(number, np.nan)
    order = np.lexsort((values, groups))
    values, groups = values[order], groups[order]
    found, first, count = np.unique(groups, return_index=True, return_counts=True)
    if not found.size:
        return result
    if take is Statistic.MEDIAN:
        middle = values[first + (count - 1) // 2] + values[first + count // 2]
        result[found] = 0.5 * middle
    elif take is Statistic.MEAN:
        result[found] = np.add.reduceat(values, first) / count
    elif take is Statistic.MIN:
        result[found] = values[first]
    else:
        result[found] = values[first + count - 1]
    return result
