"""A rule on series that are measured no more: it judges at the end of a step, not on a sample."""

from __future__ import annotations

import numpy as np

from stabilizer.rules.detectors.absent import Absent
from stabilizer.rules.outcome import AlertChange
from stabilizer.rules.rule import Rule


class AbsenceRule(Rule):
    """Evaluates a rule with the detector `absent`."""

    def end_step(self, attempt: int, step: int) -> list[AlertChange]:
        """Judge all series after the frames of a step; return what changed."""
        if self._rows == 0 or step <= max(self.spec.after_step, self._inhibited_until):
            return []
        detector = self._detector
        if not isinstance(detector, Absent):
            raise TypeError(f"the detector is {type(detector)}; allowed: {Absent}")
        try:
            verdict = detector.end_step(step)
            self.is_ready = self.is_ready or bool(verdict.known.any())
            sample = self._sample(np.full(self._rows, np.nan), verdict)
            return [] if sample is None else self.alerts.advance(attempt, step, sample, self._names)
        except Exception as error:  # noqa: BLE001  a broken rule marks itself and stops no other
            self.health.ok = False
            self.health.last_error = f"step {step}: {type(error).__name__}: {error}"[:500]
            return []
