"""From detections to alerts: inactive, pending, firing, resolved; counted in evaluated samples.

Without a quorum every series of a rule has its own alert. With one, the rule has a single alert
whose condition is that enough series are flagged together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stabilizer.protocol.decisions import AlertState, Severity
from stabilizer.rules.detectors.interface import BoolArray, FloatArray, State, grown
from stabilizer.rules.outcome import AlertChange, AlertKey
from stabilizer.rules.spec import RuleSpec, SpanSpec


@dataclass(frozen=True, slots=True)
class ActiveAlert:
    """An alert that is pending or firing."""

    key: AlertKey
    severity: Severity
    firing_step: int | None = None
    """None while it is pending."""
    is_flagged: bool = True
    """Whether its condition held at the last sample; False while it is only kept firing."""
    sign_step: int | None = None
    """The first sign, where that is earlier: of a rule on other rules, theirs."""

    @property
    def first_step(self) -> int:
        """The step of the first sign."""
        pending = self.key.pending_step
        return pending if self.sign_step is None else min(pending, self.sign_step)

    @property
    def is_firing(self) -> bool:
        """Whether it fires, rather than being pending."""
        return self.firing_step is not None


class JudgedInstance(NamedTuple):
    """An instance of a rule that was judged."""

    instance: int
    is_flagged: bool
    """Its condition holds."""
    value: float | None
    """The sample, as data for the alert. None for a rule on other rules."""
    score: float
    """What was compared with the threshold."""


def judged_instances(
    instances: Iterable[int], flagged: BoolArray, values: FloatArray, scores: FloatArray
) -> list[JudgedInstance]:
    """Take instances that were judged out of arrays."""
    return [
        JudgedInstance(at, bool(flagged[at]), float(values[at]), float(scores[at]))
        for at in instances
    ]


@dataclass(frozen=True, slots=True)
class AlertSample:
    """One evaluation of the instances of a rule.

    Args:
        judged: Those that were judged, in ascending order. Those that are neither flagged nor
            active may be left out.
        message: For all that change with this sample.
        sign_step: The first sign, if it is earlier than the sample.
    """

    judged: Sequence[JudgedInstance]
    message: str = ""
    sign_step: int | None = None


@dataclass(frozen=True, slots=True)
class AlertingSpec:
    """The part of a rule that the state machine uses."""

    rule: str
    severity: Severity
    for_: SpanSpec
    keep_firing_for: SpanSpec
    threshold: float | None

    @classmethod
    def of(cls, spec: RuleSpec, threshold: float | None) -> AlertingSpec:
        """Take the part out of a rule; a number is a number of samples."""
        return cls(
            rule=spec.name,
            severity=spec.severity,
            for_=_span(spec.for_),
            keep_firing_for=_span(spec.keep_firing_for),
            threshold=threshold,
        )


def _span(span: int | SpanSpec) -> SpanSpec:
    return SpanSpec(samples=span) if isinstance(span, int) else span


class AlertTable:
    """The alerts of one rule: I instances, of which few are ever active.

    Attributes:
        active: Pending and firing alerts by instance.
    """

    def __init__(self, spec: AlertingSpec) -> None:
        self._spec = spec
        self.active: dict[int, ActiveAlert] = {}
        self._flagged_in_a_row = np.empty(0, np.int64)
        self._clear_in_a_row = np.empty(0, np.int64)
        self._clear_since = np.empty(0, np.int64)

    def resize(self, num_instances: int) -> None:
        """Make room for more instances."""
        self._flagged_in_a_row = grown(self._flagged_in_a_row, num_instances, 0)
        self._clear_in_a_row = grown(self._clear_in_a_row, num_instances, 0)
        self._clear_since = grown(self._clear_since, num_instances, -1)

    def advance(
        self, attempt: int, step: int, sample: AlertSample, names: Sequence[str]
    ) -> list[AlertChange]:
        """Evaluate one sample of every instance; return what changed."""
        changes: list[AlertChange] = []
        for judged in sample.judged:
            instance = judged.instance
            if judged.is_flagged:
                self._flagged_in_a_row[instance] += 1
                self._clear_in_a_row[instance] = 0
            elif instance in self.active:
                self._flagged_in_a_row[instance] = 0
                if not self._clear_in_a_row[instance]:
                    self._clear_since[instance] = step
                self._clear_in_a_row[instance] += 1
            else:
                continue
            key = AlertKey(attempt, self._spec.rule, names[instance], step)
            changes.extend(self._move(judged, key, sample))
        return changes

    def _move(
        self, judged: JudgedInstance, key: AlertKey, sample: AlertSample
    ) -> Iterator[AlertChange]:
        instance, step = judged.instance, key.pending_step
        alert = self.active.get(instance)
        if judged.is_flagged:
            if alert is None:
                alert = ActiveAlert(key, self._spec.severity, sign_step=sample.sign_step)
                self.active[instance] = alert
                if not self._is_due(instance, alert, step):
                    yield self._change(alert, AlertState.PENDING, step, judged, sample)
            if not alert.is_firing and self._is_due(instance, alert, step):
                alert = replace(alert, firing_step=step)
                self.active[instance] = alert
                yield self._change(alert, AlertState.FIRING, step, judged, sample)
            elif not alert.is_flagged:
                self.active[instance] = replace(alert, is_flagged=True)
        elif alert is not None and not alert.is_firing:
            del self.active[instance]
            yield self._change(alert, AlertState.INACTIVE, step, judged, sample)
        elif alert is not None and self._is_over(instance, step):
            del self.active[instance]
            yield self._change(alert, AlertState.RESOLVED, step, judged, sample)
        elif alert is not None and alert.is_flagged:
            self.active[instance] = replace(alert, is_flagged=False)

    def _is_due(self, instance: int, alert: ActiveAlert, step: int) -> bool:
        span = self._spec.for_
        has_samples = self._flagged_in_a_row[instance] >= span.samples
        return bool(has_samples) and step - alert.key.pending_step >= span.steps

    def _is_over(self, instance: int, step: int) -> bool:
        span = self._spec.keep_firing_for
        has_samples = self._clear_in_a_row[instance] >= span.samples
        return bool(has_samples) and step - int(self._clear_since[instance]) >= span.steps

    def _change(
        self,
        alert: ActiveAlert,
        state: AlertState,
        step: int,
        judged: JudgedInstance,
        sample: AlertSample,
    ) -> AlertChange:
        return AlertChange(
            key=alert.key,
            severity=alert.severity,
            state=state,
            step=step,
            firing_step=alert.firing_step,
            resolved_step=step if state is AlertState.RESOLVED else None,
            value=judged.value,
            score=None if math.isnan(judged.score) else judged.score,
            threshold=self._spec.threshold,
            message=sample.message,
        )

    def reset(self, step: int, message: str) -> list[AlertChange]:
        """End all alerts."""
        changes = [
            AlertChange(
                key=alert.key,
                severity=alert.severity,
                state=AlertState.RESOLVED if alert.is_firing else AlertState.INACTIVE,
                step=step,
                firing_step=alert.firing_step,
                resolved_step=step if alert.is_firing else None,
                threshold=self._spec.threshold,
                message=message,
            )
            for _, alert in sorted(self.active.items())
        ]
        self.active.clear()
        self._flagged_in_a_row[:] = 0
        self._clear_in_a_row[:] = 0
        return changes

    def state(self) -> State:
        """Return the arrays: counts, and of every active alert instance, attempt and steps."""
        rows = [
            (
                instance,
                alert.key.attempt,
                alert.key.pending_step,
                -1 if alert.firing_step is None else alert.firing_step,
                alert.is_flagged,
                -1 if alert.sign_step is None else alert.sign_step,
            )
            for instance, alert in sorted(self.active.items())
        ]
        active = np.array(rows, np.int64).reshape(-1, 6)
        return {
            "flagged": self._flagged_in_a_row,
            "clear": self._clear_in_a_row,
            "clear_since": self._clear_since,
            "active": active,
        }

    def load(self, state: State, names: list[str]) -> None:
        """Take over the arrays."""
        self._flagged_in_a_row = np.array(state["flagged"], np.int64)
        self._clear_in_a_row = np.array(state["clear"], np.int64)
        never = np.full(len(self._clear_in_a_row), -1, np.int64)  # saved by version 0.1
        self._clear_since = np.array(state.get("clear_since", never), np.int64)
        table: npt.NDArray[np.int64] = np.array(state["active"], np.int64)
        self.active = {}
        for instance, attempt, pending, firing, is_flagged, *signs in table.tolist():
            key = AlertKey(attempt, self._spec.rule, names[instance], pending)
            fired = None if firing < 0 else firing
            sign = next((step for step in signs if step >= 0), None)  # version 0.1 has no column
            self.active[instance] = ActiveAlert(
                key, self._spec.severity, fired, bool(is_flagged), sign
            )
