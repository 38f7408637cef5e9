"""Rules on wall-clock time, which enters as recorded ticks: the rules themselves read no clock."""

from __future__ import annotations

from typing import Any, Final

from pydantic import JsonValue

from stabilizer.protocol.runs import Tick
from stabilizer.rules.alerting import AlertingSpec, AlertSample, AlertTable, JudgedInstance
from stabilizer.rules.detectors.interface import State, part_of
from stabilizer.rules.outcome import AlertChange, RuleHealth
from stabilizer.rules.spec import ClockSpec, RuleSpec

INSTANCE: Final = ""
"""The series of its alert: the run as a whole."""


class ClockRule:
    """Evaluates one limit of time on ticks. It opens no incident: no command reaches such a job."""

    def __init__(self, spec: RuleSpec, clock: ClockSpec) -> None:
        self.spec = spec
        self.health = RuleHealth(spec.name, note="no tick yet")
        self.alerts = AlertTable(AlertingSpec.of(spec, threshold=clock.limit))
        self.alerts.resize(1)
        self._clock = clock

    def _seconds(self, tick: Tick) -> float | None:
        if self._clock.lost_for is not None:
            return tick.silent
        return tick.stalled if self._clock.stalled_for is not None else tick.behind

    def would_change(self, tick: Tick) -> bool:
        """Return whether a tick would change its alert."""
        seconds = self._seconds(tick)
        return seconds is not None and (seconds >= self._clock.limit) != bool(self.alerts.active)

    def tick(self, attempt: int, tick: Tick) -> list[AlertChange]:
        """Evaluate a tick; return what changed."""
        seconds = self._seconds(tick)
        if seconds is None:
            return []
        self.health.evaluations += 1
        self.health.note = ""
        is_late = seconds >= self._clock.limit
        message = f"{seconds:.0f} s. {self.spec.message}".strip()
        sample = AlertSample([JudgedInstance(0, is_late, seconds, seconds)], message=message)
        return self.alerts.advance(attempt, tick.step, sample, [INSTANCE])

    def end(self, step: int) -> list[AlertChange]:
        """End the alert: the run has ended."""
        return self.alerts.reset(step, "the run ended")

    def state(self) -> tuple[dict[str, JsonValue], State]:
        """Return what `load` needs: plain data and arrays."""
        arrays = {f"alerts.{name}": array for name, array in self.alerts.state().items()}
        return {"evaluations": self.health.evaluations}, arrays

    def load(self, head: dict[str, Any], arrays: State) -> None:
        """Take over a state.

        Raises:
            KeyError: Something is missing.
        """
        self.health.evaluations = head["evaluations"]
        self.health.note = "" if self.health.evaluations else "no tick yet"
        self.alerts.load(part_of(arrays, "alerts."), [INSTANCE])
