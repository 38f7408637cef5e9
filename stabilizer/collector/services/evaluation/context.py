"""What people have set, as the policy is told it at each step."""

from __future__ import annotations

from typing import Any

from stabilizer.collector.services.unit_of_work import RunTransaction
from stabilizer.protocol.decisions import Mode
from stabilizer.rules.outcome import PolicyContext


class ContextSource:
    """Mode, disarm and silences of a run, read once in a transaction.

    A silence that ends at a step ends within a batch; one that ends at a time does not, since a
    batch is one moment.
    """

    def __init__(self, tx: RunTransaction) -> None:
        control = tx.repos.control.get()
        self._mode = Mode(tx.run.mode)
        self._disarmed = control is not None and control.disarmed
        self._silences = [
            (row.rule, row.until_step)
            for row in tx.repos.control.silences(tx.run.id)
            if row.until is None or row.until > tx.now
        ]

    def at(self, step: int) -> PolicyContext:
        """Return what holds at a step."""
        silenced = frozenset(
            rule for rule, until_step in self._silences if until_step is None or step <= until_step
        )
        return PolicyContext(self._mode, self._disarmed, silenced)


class FixedContext:
    """What held when a state was saved: a replay is told the same."""

    def __init__(self, context: PolicyContext) -> None:
        self._context = context

    def at(self, _step: int) -> PolicyContext:
        """Return what held."""
        return self._context


def dump_context(context: PolicyContext) -> dict[str, Any]:
    """Write a context for the database."""
    return {
        "mode": context.mode.value,
        "disarmed": context.disarmed,
        "silenced": sorted(context.silenced),
    }


def load_context(data: dict[str, Any]) -> PolicyContext:
    """Read a context from the database."""
    return PolicyContext(Mode(data["mode"]), bool(data["disarmed"]), frozenset(data["silenced"]))
