"""A rule on other rules: all, any, not, one after another, so often within so many steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, Final

from pydantic import JsonValue

from stabilizer.protocol.runs import Phase
from stabilizer.rules.alerting import AlertingSpec, AlertSample, AlertTable, JudgedInstance
from stabilizer.rules.detectors.interface import State, part_of
from stabilizer.rules.outcome import AlertChange, RuleHealth
from stabilizer.rules.rule import Rule
from stabilizer.rules.spec import ConditionSpec, RuleSpec, ThenSpec

MAX_ONSETS: Final = 100
INSTANCE: Final = ""
"""The series of its alert: the run as a whole."""


@dataclass(frozen=True, slots=True)
class Now:
    """What conditions may refer to at a step."""

    step: int
    rules: Mapping[str, Rule | CompoundRule]
    stirred: Set[str]
    """Names of the rules with an alert that is pending or firing."""
    phase: Phase


class CompoundRule:
    """Evaluates a condition on the rules above it, once per step after all frames."""

    def __init__(self, spec: RuleSpec, when: ConditionSpec) -> None:
        self.spec = spec
        self.health = RuleHealth(spec.name)
        self.alerts = AlertTable(AlertingSpec.of(spec, threshold=None))
        self.alerts.resize(1)
        self._when = when
        self._parts = sorted(when.rules())
        self._last: dict[str, int] = {}  # the last step at which a rule fired
        self._onsets: dict[str, list[int]] = {}  # the steps at which a rule began to fire
        self._is_firing: set[str] = set()
        nested = [*_walk(when)]
        self._asks_ready = sorted({part.ready for part in nested if part.ready is not None})
        self._asks_phase = any(part.phase for part in nested)
        self._horizon = max(part.within for part in nested)
        self._idle: list[bool | Phase] | None = None
        """What `_surroundings` were when the condition was last not met and only they, or a part
        that fires, could change that; None if time alone could."""

    @property
    def is_firing(self) -> bool:
        """Whether its alert fires."""
        return any(alert.is_firing for alert in self.alerts.active.values())

    @property
    def is_ready(self) -> bool:
        """A condition can always be judged."""
        return True

    def evaluate(self, attempt: int, now: Now) -> list[AlertChange]:
        """Evaluate the condition at a step; return what changed. A failure goes into `health`."""
        try:
            return self._evaluate(attempt, now)
        except Exception as error:  # noqa: BLE001  a broken rule marks itself and stops no other
            self.health.ok = False
            self.health.last_error = f"step {now.step}: {type(error).__name__}: {error}"[:500]
            return []

    def _evaluate(self, attempt: int, now: Now) -> list[AlertChange]:
        self.health.evaluations += 1
        is_calm = now.stirred.isdisjoint(self._parts)
        surroundings = self._surroundings(now)
        if is_calm and surroundings == self._idle:
            return []
        for name in self._parts:
            self._note(name, now.step, now.rules[name])
        is_met = self._holds(self._when, now)
        self._idle = None
        if not is_met and not self.alerts.active:
            if is_calm and now.step > max(self._last.values(), default=-1) + self._horizon:
                self._idle = surroundings
            return []
        signs = [
            alert.first_step
            for name in self._parts
            for alert in now.rules[name].alerts.active.values()
        ]
        firing = ", ".join(name for name in self._parts if name in self._is_firing)
        sample = AlertSample(
            [JudgedInstance(0, is_met, None, math.nan)],
            message=f"{firing}. {self.spec.message}".strip(". ") if is_met else self.spec.message,
            sign_step=min(signs, default=None),
        )
        changes = self.alerts.advance(attempt, now.step, sample, [INSTANCE])
        self.health.ok = True
        return changes

    def _surroundings(self, now: Now) -> list[bool | Phase]:
        """Return what the condition refers to besides alerts."""
        ready: list[bool | Phase] = [now.rules[name].is_ready for name in self._asks_ready]
        return [*ready, now.phase] if self._asks_phase else ready

    def _note(self, name: str, step: int, rule: Rule | CompoundRule) -> None:
        if not rule.alerts.active or not rule.is_firing:
            self._is_firing.discard(name)
            return
        self._last[name] = step
        if name not in self._is_firing:
            self._is_firing.add(name)
            self._onsets[name] = [*self._onsets.get(name, [])[1 - MAX_ONSETS :], step]

    def _holds(self, condition: ConditionSpec, now: Now) -> bool:
        if condition.all is not None or condition.any is not None:
            held = (self._holds(part, now) for part in condition.all or condition.any or ())
            return any(held) if condition.all is None else all(held)
        if condition.not_ is not None:
            return not self._holds(condition.not_, now)
        if condition.ready is not None:
            return now.rules[condition.ready].is_ready
        if condition.then is not None:
            return self._follows(condition.then)
        if condition.phase:
            return now.phase in condition.phase
        return self._fires(condition, now.step)

    def _fires(self, condition: ConditionSpec, step: int) -> bool:
        name = condition.rule or ""
        if condition.times > 1:
            recent = [at for at in self._onsets.get(name, ()) if step - at <= condition.within]
            return len(recent) >= condition.times
        return name in self._last and step - self._last[name] <= condition.within

    def _follows(self, then: ThenSpec) -> bool:
        if then.second not in self._is_firing:
            return False
        at = self._onsets[then.second][-1]
        return any(0 <= at - first <= then.within for first in self._onsets.get(then.first, ()))

    def begin_attempt(self, from_step: int, reason: str | None) -> list[AlertChange]:
        """End the alert, and forget what fired."""
        self._last.clear()
        self._onsets.clear()
        self._is_firing.clear()
        self._idle = None
        return self.alerts.reset(from_step, f"a new attempt began: {reason}")

    def end(self, step: int) -> list[AlertChange]:
        """End the alert: the run has ended."""
        return self.alerts.reset(step, "the run ended")

    def state(self) -> tuple[dict[str, JsonValue], State]:
        """Return what `load` needs: plain data and arrays."""
        head: dict[str, JsonValue] = {
            "last": dict(self._last),
            "onsets": {name: [*steps] for name, steps in self._onsets.items()},
            "is_firing": [*sorted(self._is_firing)],
            "evaluations": self.health.evaluations,
        }
        return head, {f"alerts.{name}": array for name, array in self.alerts.state().items()}

    def load(self, head: dict[str, Any], arrays: State) -> None:
        """Take over a state.

        Raises:
            KeyError: Something is missing.
        """
        self._last = {str(name): int(step) for name, step in head["last"].items()}
        self._onsets = {str(name): [*map(int, steps)] for name, steps in head["onsets"].items()}
        self._is_firing = set(head["is_firing"])
        self._idle = None
        self.health.evaluations = head["evaluations"]
        self.alerts.load(part_of(arrays, "alerts."), [INSTANCE])


def _walk(condition: ConditionSpec) -> Iterator[ConditionSpec]:
    """Yield a condition and all conditions within it."""
    yield condition
    inverted = () if condition.not_ is None else (condition.not_,)
    for part in (*(condition.all or ()), *(condition.any or ()), *inverted):
        yield from _walk(part)
