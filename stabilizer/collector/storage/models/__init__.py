"""Tables. Importing this package fills `Table.metadata` with all of them."""

from stabilizer.collector.storage.models.control import AuditRow, ControlRow, SilenceRow
from stabilizer.collector.storage.models.decisions import (
    AlertRow,
    CommandRow,
    DecisionRow,
    IncidentRow,
)
from stabilizer.collector.storage.models.frames import (
    BatchRow,
    CatalogRow,
    FrameRow,
    RunCatalogRow,
    SeriesRow,
)
from stabilizer.collector.storage.models.rules import BrainStateRow, RuleSetRow
from stabilizer.collector.storage.models.runs import AttemptRow, MarkerRow, RunRow, SnapshotRow
from stabilizer.collector.storage.models.table import Table

__all__ = [
    "AlertRow",
    "AttemptRow",
    "AuditRow",
    "BatchRow",
    "BrainStateRow",
    "CatalogRow",
    "CommandRow",
    "ControlRow",
    "DecisionRow",
    "FrameRow",
    "IncidentRow",
    "MarkerRow",
    "RuleSetRow",
    "RunCatalogRow",
    "RunRow",
    "SeriesRow",
    "SilenceRow",
    "SnapshotRow",
    "Table",
]
