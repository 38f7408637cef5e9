"""Whether the alerts of an incident call for an action, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from stabilizer.protocol.decisions import DecisionReason, Severity
from stabilizer.rules.outcome import AlertKey
from stabilizer.rules.spec import ActOnSpec

RANKS: Final = {severity: rank for rank, severity in enumerate(Severity)}
"""Severities in order, mildest first."""


@dataclass(slots=True)
class Signal:
    """An alert of an incident, since it fired. Times are in steps trained."""

    key: AlertKey
    severity: Severity
    fired_at: int
    is_flagged: bool = True
    """Whether its condition holds now; False while it is only kept firing."""
    cleared_at: int | None = None
    first_step: int | None = None
    """The job's step of its first sign; None if that is not known."""

    @property
    def is_firing(self) -> bool:
        """Whether it still fires."""
        return self.cleared_at is None


class ActOn:
    """The conditions of a policy for acting."""

    def __init__(self, spec: ActOnSpec) -> None:
        self._spec = spec

    def cause(self, signals: Sequence[Signal], now: int, wait: int) -> DecisionReason | None:
        """Return why to act, or None.

        Args:
            signals: Alerts of the incident that are not silenced.
            now: Steps trained.
            wait: Steps that a signal has to recover by itself.
        """
        firing = [signal for signal in signals if signal.is_firing]
        if not firing:
            return None
        met = [signal for item in self._spec.any for signal in firing if _meets(signal, item)]
        if any(signal.severity is Severity.DIVERGENCE for signal in met):
            return DecisionReason.DIVERGENCE
        if met or self._are_together(signals, now):
            return DecisionReason.PRECURSOR_CONFIRMED
        if any(
            signal.is_flagged and now - signal.fired_at >= wait for signal in self.waiting(firing)
        ):
            return DecisionReason.DEADLINE_PASSED
        return None

    def _are_together(self, signals: Sequence[Signal], now: int) -> bool:
        """Return whether every item of `or_all` is met, by now or recently, and one by now."""
        met = [[s for s in signals if _meets(s, item)] for item in self._spec.or_all]
        within = self._spec.within
        return (
            bool(met)
            and any(signal.is_firing for group in met for signal in group)
            and all(
                any(s.cleared_at is None or now - s.cleared_at <= within for s in group)
                for group in met
            )
        )

    def waiting(self, signals: Iterable[Signal]) -> list[Signal]:
        """Return the signals that call for an action if they still fire when the wait is over."""
        return [
            signal
            for signal in signals
            if signal.is_firing and any(_meets(signal, item) for item in self._spec.after_wait)
        ]

    def wait_left(self, signals: Iterable[Signal], now: int, wait: int) -> int | None:
        """Return the steps until the first wait is over; None if there is none."""
        ends = [signal.fired_at + wait - now for signal in self.waiting(signals)]
        return max(0, min(ends)) if ends else None


def _meets(signal: Signal, item: str) -> bool:
    return any(_meets_one(signal, alternative) for alternative in item.split("|"))


def _meets_one(signal: Signal, item: str) -> bool:
    kind, _, name = item.partition(":")
    if kind == "rule":
        return signal.key.rule == name
    return RANKS[signal.severity] >= RANKS[Severity(name)]
