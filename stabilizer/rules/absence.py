"""A rule on series that are measured no more: it judges at the end of a step, not on a sample."""

from __future__ import annotations

import numpy as np

from stabilizer.rules.detector_specs import AbsentSpec, DetectSpec
from stabilizer.rules.detectors.absent import Absent
from stabilizer.rules.outcome import AlertChange
from stabilizer.rules.rule import Rule
from stabilizer.rules.spec import RuleSpec, SelectSpec


class AbsenceRule(Rule):
    """Evaluates a rule with the detector `absent`."""

    def __init__(self, spec: RuleSpec, select: SelectSpec, detect: DetectSpec) -> None:
        super().__init__(spec, select, detect)
        if not isinstance(self._detector, Absent):
            raise TypeError(f"the detector is {type(self._detector)}; allowed: {AbsentSpec}")
        self._absent = self._detector

    def end_step(self, attempt: int, step: int) -> list[AlertChange]:
        """Judge all series after the frames of a step; return what changed."""
        if self._rows == 0 or step <= max(self.spec.after_step, self._inhibited_until):
            return []
        try:
            verdict = self._absent.end_step(step)
            self.is_ready = self.is_ready or bool(verdict.known.any())
            if not self.alerts.active and not verdict.flagged.any():
                if self._quorum is not None:
                    self._quorum.note_clear(verdict)
                return []
            sample = self._sample(np.full(self._rows, np.nan), verdict)
            return self.alerts.advance(attempt, step, sample, self._names)
        except Exception as error:  # noqa: BLE001  a broken rule marks itself and stops no other
            self.health.ok = False
            self.health.last_error = f"step {step}: {type(error).__name__}: {error}"[:500]
            return []
