"""One rule of a run: its rows, its detector, its alerts, its health."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import JsonValue

from stabilizer.protocol.batches import Marker, MarkerKind
from stabilizer.protocol.frames import Float32Array
from stabilizer.protocol.series import Catalog
from stabilizer.rules.alerting import AlertingSpec, AlertSample, AlertTable
from stabilizer.rules.detector_specs import DetectSpec
from stabilizer.rules.detectors import build_detector
from stabilizer.rules.detectors.interface import (
    BoolArray,
    Detection,
    FloatArray,
    State,
    part_of,
)
from stabilizer.rules.outcome import AlertChange, RuleHealth
from stabilizer.rules.quorum import Quorum
from stabilizer.rules.selection import Selection
from stabilizer.rules.spec import RuleSpec, SelectSpec


class Rule:
    """Evaluates one rule on the frames of one run.

    Attributes:
        is_ready: Whether it has judged a series.
    """

    def __init__(self, spec: RuleSpec, select: SelectSpec, detect: DetectSpec) -> None:
        self.spec = spec
        self.health = RuleHealth(spec.name)
        self._selection = Selection(select)
        self._detector = build_detector(detect.detector)
        self.alerts = AlertTable(AlertingSpec.of(spec, self._detector.threshold))
        self.is_ready = False
        self._rows = 0
        self._inhibited_until = -1
        self._quorum = None if spec.quorum is None else Quorum(spec, select, self._selection)
        self._everything = np.empty(0, np.bool_)

    def observe(
        self,
        attempt: int,
        step: int,
        catalog: Catalog,
        values: Float32Array,
        present: BoolArray | None,
    ) -> list[AlertChange]:
        """Evaluate one frame; return what changed. A failure goes into `health`."""
        try:
            return self._evaluate(attempt, step, catalog, values, present)
        except Exception as error:  # noqa: BLE001  a broken rule marks itself and stops no other
            self.health.ok = False
            self.health.last_error = f"step {step}: {type(error).__name__}: {error}"[:500]
            return []

    def _evaluate(
        self,
        attempt: int,
        step: int,
        catalog: Catalog,
        values: Float32Array,
        present: BoolArray | None,
    ) -> list[AlertChange]:
        columns, rows = self._selection.columns(catalog)
        if columns.size == 0 or step <= self.spec.after_step or step <= self._inhibited_until:
            return []
        self._resize()
        if present is None and columns.size == self._rows:
            samples, usable = np.empty(self._rows), self._everything
            samples[rows] = values[columns]
        else:
            samples, usable = np.full(self._rows, np.nan), np.zeros(self._rows, np.bool_)
            samples[rows] = values[columns]
            usable[rows] = True if present is None else present[columns]
            if not usable.any():
                return []
        self.health.evaluations += 1
        verdict = self._detector.update(step, samples, usable)
        self.health.ok = True
        self.is_ready = self.is_ready or bool(verdict.known.any())
        if not self.alerts.active and not verdict.flagged.any():
            if self._quorum is not None:
                self._quorum.note_clear(verdict)
            return []
        return self.alerts.advance(attempt, step, self._sample(samples, verdict), self._names)

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
        if num_series == self._rows:
            return
        self._rows = num_series
        self._detector.resize(num_series)
        if self._quorum is not None:
            self._quorum.resize(self._selection.series)
        self.alerts.resize(len(self._names))
        self._everything = np.ones(num_series, np.bool_)

    def _sample(self, samples: FloatArray, verdict: Detection) -> AlertSample:
        if self._quorum is not None:
            return self._quorum.combine(samples, verdict)
        return AlertSample(
            verdict.known, verdict.flagged, samples, verdict.score, self.spec.message
        )

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
        self._detector.load(part_of(arrays, "detector."))
        if self._quorum is not None:
            self._quorum.load(arrays, self._selection.series)
        self.alerts.load(part_of(arrays, "alerts."), self._names)
        self._everything = np.ones(self._rows, np.bool_)
