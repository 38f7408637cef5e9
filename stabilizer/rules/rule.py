"""One rule of a run: its rows, its detector, its alerts, its health."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from pydantic import JsonValue

from stabilizer.protocol.batches import Marker, MarkerKind
from stabilizer.protocol.frames import Float32Array
from stabilizer.protocol.series import Catalog
from stabilizer.rules.alerting import (
    AlertingSpec,
    AlertSample,
    AlertTable,
    JudgedInstance,
    judged_instances,
)
from stabilizer.rules.detector_specs import DetectSpec
from stabilizer.rules.detectors import build_detector
from stabilizer.rules.detectors.interface import (
    BoolArray,
    Detection,
    Detector,
    FloatArray,
    State,
    part_of,
    unknown,
)
from stabilizer.rules.detectors.scalar import MOST_SERIES, build_scalar_detector
from stabilizer.rules.detectors.scalar.interface import Judgement, ScalarDetector
from stabilizer.rules.outcome import AlertChange, RuleHealth
from stabilizer.rules.quorum import Quorum
from stabilizer.rules.selection import Selection, Watched
from stabilizer.rules.spec import RuleSpec, SelectSpec

_NAN: Final = math.nan
_SHORT: Final = 256
"""Frames of so many columns are read as a whole; of longer ones, what a rule watches."""


class Frame:
    """The values of one catalog at one step, as all rules see them.

    Args:
        attempt: The attempt of the run.
        step: Completed optimizer steps.
        catalog: Names the columns.
        values: Shape [N], in catalog order.
        present: Shape [N]; None if everything was measured.
    """

    def __init__(
        self,
        attempt: int,
        step: int,
        catalog: Catalog,
        values: Float32Array,
        present: BoolArray | None = None,
    ) -> None:
        self.attempt = attempt
        self.step = step
        self.catalog = catalog
        self.values = values
        self.present = present
        self._known: dict[tuple[tuple[int, int], ...], list[tuple[int, float]]] = {}
        is_short = len(values) <= _SHORT
        self._floats: list[float] | None = values.tolist() if is_short else None
        self._there: list[bool] | None = None
        if is_short and present is not None:
            self._there = present.tolist()

    def samples(self, pairs: tuple[tuple[int, int], ...]) -> list[tuple[int, float]]:
        """Return row and value of those columns, given as (column, row), that were measured."""
        known = self._known.get(pairs)
        if known is None:
            known = self._known[pairs] = self._read(pairs)
        return known

    def _read(self, pairs: tuple[tuple[int, int], ...]) -> list[tuple[int, float]]:
        floats, there, present = self._floats, self._there, self.present
        if floats is None:
            item = self.values.item
            return [(row, item(at)) for at, row in pairs if present is None or present[at]]
        return [(row, floats[at]) for at, row in pairs if there is None or there[at]]


class Rule:
    """Evaluates one rule on the frames of one run.

    Attributes:
        is_ready: Whether it has judged a series.
    """

    def __init__(self, spec: RuleSpec, select: SelectSpec, detect: DetectSpec) -> None:
        self.spec = spec
        self.health = RuleHealth(spec.name)
        self._selection = Selection(select)
        self._detect = detect.detector
        self._detector = self._build_detector(num_series=0)
        self.alerts = AlertTable(AlertingSpec.of(spec, self._detector.threshold))
        self.is_ready = False
        self._rows = 0
        self._inhibited_until = -1
        self._quorum = None if spec.quorum is None else Quorum(spec, select, self._selection)
        self._everything = np.empty(0, np.bool_)

    def _build_detector(self, num_series: int) -> Detector | ScalarDetector:
        few = build_scalar_detector(self._detect) if num_series <= MOST_SERIES else None
        return few or build_detector(self._detect)

    def watches(self, catalog: Catalog) -> bool:
        """Return whether it watches a series of a catalog that is measured now."""
        try:
            return bool(self._selection.columns(catalog).pairs)
        except Exception:  # noqa: BLE001  `observe` reports it
            return True

    def observe(self, frame: Frame) -> list[AlertChange]:
        """Evaluate one frame; return what changed. A failure goes into `health`."""
        try:
            return self._evaluate(frame)
        except Exception as error:  # noqa: BLE001  a broken rule marks itself and stops no other
            self.health.ok = False
            self.health.last_error = f"step {frame.step}: {type(error).__name__}: {error}"[:500]
            return []

    def _evaluate(self, frame: Frame) -> list[AlertChange]:
        watched = self._selection.columns(frame.catalog)
        step = frame.step
        if not watched.pairs or step <= self.spec.after_step or step <= self._inhibited_until:
            return []
        if len(self._selection.series) != self._rows:
            self._resize()
        if isinstance(self._detector, ScalarDetector):
            sample = self._judge_few(self._detector, frame, watched)
        else:
            sample = self._judge_many(self._detector, frame, watched)
        if sample is None:
            return []
        return self.alerts.advance(frame.attempt, step, sample, self._names)

    def _judge_few(
        self, detector: ScalarDetector, frame: Frame, watched: Watched
    ) -> AlertSample | None:
        """Judge the samples of a frame; return what may change an alert."""
        samples = frame.samples(watched.pairs)
        if not samples:
            return None
        self.health.evaluations += 1
        judgements = detector.update(frame.step, samples)
        self.health.ok = True
        if not judgements:
            return None
        self.is_ready = True
        if not self.alerts.active and True not in [j.is_flagged for j in judgements]:
            if self._quorum is not None:
                self._quorum.note_clear_rows(judgement.row for judgement in judgements)
            return None
        if self._quorum is not None:
            return self._ask_quorum(self._quorum, samples, judgements)
        of = dict(samples)
        return AlertSample(
            [JudgedInstance(j.row, j.is_flagged, of.get(j.row, _NAN), j.score) for j in judgements],
            self.spec.message,
        )

    def _ask_quorum(
        self,
        quorum: Quorum,
        samples: Sequence[tuple[int, float]],
        judgements: Sequence[Judgement],
    ) -> AlertSample:
        values, verdict = np.full(self._rows, np.nan), unknown(self._rows)
        for row, value in samples:
            values[row] = value
        for row, is_flagged, score in judgements:
            verdict.known[row], verdict.flagged[row], verdict.score[row] = True, is_flagged, score
        return quorum.combine(values, verdict)

    def _judge_many(self, detector: Detector, frame: Frame, watched: Watched) -> AlertSample | None:
        """Judge the samples of a frame; return what may change an alert."""
        columns, rows, _ = watched
        present = frame.present
        if present is None and columns.size == self._rows:
            samples, usable = np.empty(self._rows), self._everything
            samples[rows] = frame.values[columns]
        else:
            samples, usable = np.full(self._rows, np.nan), np.zeros(self._rows, np.bool_)
            samples[rows] = frame.values[columns]
            usable[rows] = True if present is None else present[columns]
            if not usable.any():
                return None
        self.health.evaluations += 1
        verdict = detector.update(frame.step, samples, usable)
        self.health.ok = True
        if not verdict.known.any():
            return None
        self.is_ready = True
        return self._sample(samples, verdict)

    def _sample(self, samples: FloatArray, verdict: Detection) -> AlertSample | None:
        """Return what a verdict may change of an alert."""
        if not self.alerts.active and not verdict.flagged.any():
            if self._quorum is not None:
                self._quorum.note_clear(verdict)
            return None
        if self._quorum is not None:
            return self._quorum.combine(samples, verdict)
        touched = sorted({*np.flatnonzero(verdict.flagged).tolist(), *self.alerts.active})
        known = [row for row in touched if verdict.known[row]]
        judged = judged_instances(known, verdict.flagged, samples, verdict.score)
        return AlertSample(judged, self.spec.message)

    @property
    def is_firing(self) -> bool:
        """Whether one of its alerts fires."""
        return any(alert.is_firing for alert in self.alerts.active.values())

    @property
    def note(self) -> str:
        """Why the rule cannot judge yet; empty if it can."""
        if not self._selection.series:
            return "selects nothing"
        learned = self._detector.learned()
        if self.is_ready or learned is None:
            return ""
        return "learning {} of {}".format(*learned)

    @property
    def _names(self) -> list[str]:
        return self._selection.series if self._quorum is None else self._quorum.names

    def _resize(self) -> None:
        num_series = len(self._selection.series)
        if num_series > MOST_SERIES and isinstance(self._detector, ScalarDetector):
            few, self._detector = self._detector, build_detector(self._detect)
            if self._rows:
                self._detector.load(few.state())
        self._rows = num_series
        self._detector.resize(num_series)
        if self._quorum is not None:
            self._quorum.resize(self._selection.series)
        self.alerts.resize(len(self._names))
        self._everything = np.ones(num_series, np.bool_)

    def marker(self, marker: Marker) -> None:
        """Process an event of the job."""
        steps = self.spec.inhibit_after.get(marker.kind, 0)
        if steps:
            self._inhibited_until = max(self._inhibited_until, marker.step + steps)
        if marker.kind is MarkerKind.PHASE_CHANGE:
            self._detector.forget()

    def begin_attempt(self, from_step: int, reason: MarkerKind | None) -> list[AlertChange]:
        """End all alerts and forget what was learned after `from_step`.

        Args:
            from_step: Completed steps where the attempt begins.
            reason: None for the very beginning of a run, which inhibits nothing.
        """
        self._inhibited_until = -1
        self._detector.rewind(from_step)
        if self._quorum is not None:
            self._quorum.reset()
        if reason is not None:
            self.marker(Marker(kind=reason, step=from_step))
        return self.alerts.reset(from_step, f"a new attempt began: {reason}")

    def end(self, step: int) -> list[AlertChange]:
        """End all alerts: the run has ended."""
        return self.alerts.reset(step, "the run ended")

    def state(self) -> tuple[dict[str, JsonValue], State]:
        """Return what `load` needs: plain data and arrays."""
        head: dict[str, JsonValue] = {
            "selection": self._selection.state(),
            "rows": self._rows,
            "inhibited_until": self._inhibited_until,
            "ok": self.health.ok,
            "last_error": self.health.last_error,
            "evaluations": self.health.evaluations,
            "is_ready": self.is_ready,
        }
        arrays = {f"detector.{name}": array for name, array in self._detector.state().items()}
        arrays |= {f"alerts.{name}": array for name, array in self.alerts.state().items()}
        if self._quorum is not None:
            arrays |= self._quorum.state()
        return head, arrays

    def load(self, head: dict[str, Any], arrays: State) -> None:
        """Take over a state.

        Raises:
            KeyError: Something is missing.
            ValueError: An array does not fit.
        """
        selection = head["selection"]
        self._selection.load(selection["series"], selection["layers"])
        self._rows = head["rows"]
        self._inhibited_until = head["inhibited_until"]
        self.health.ok = head["ok"]
        self.health.last_error = head["last_error"]
        self.health.evaluations = head["evaluations"]
        self.is_ready = head.get("is_ready", False)  # absent in a state of version 0.1
        self._detector = self._build_detector(self._rows)
        self._detector.load(part_of(arrays, "detector."))
        if self._quorum is not None:
            self._quorum.load(arrays, self._selection.series)
        self.alerts.load(part_of(arrays, "alerts."), self._names)
        self._everything = np.ones(self._rows, np.bool_)
