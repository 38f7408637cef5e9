"""All that the policy remembers of a run: plain data, so that it can be saved."""

from __future__ import annotations

from dataclasses import dataclass, field

from stabilizer.rules.outcome import AlertKey
from stabilizer.rules.policy.guards import Ledger
from stabilizer.rules.policy.incident import IncidentRecord
from stabilizer.rules.policy.lineage import Lineage
from stabilizer.rules.policy.loss_level import LossLevel


@dataclass(slots=True)
class Memory:
    """The state of the policy of one run."""

    lineage: Lineage
    attempt: int = 1
    step: int = 0
    num_incidents: int = 0
    incident: IncidentRecord | None = None
    """The open one, if there is one."""
    ledger: Ledger = field(default_factory=Ledger)
    loss: LossLevel = field(default_factory=LossLevel)
    left_over: list[AlertKey] = field(default_factory=list)
    """Alerts that still fire although their incident is resolved: they open no other."""
    manual: list[str] = field(default_factory=list)
    """Ids of people's interventions that are under way."""
    manual_done: list[str] = field(default_factory=list)
    """Ids of the last commands that were applied, people's and our own: told twice, they count
    once."""
