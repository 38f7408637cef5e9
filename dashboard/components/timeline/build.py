"""The log book of a run, from everything that the collector knows of it."""

from __future__ import annotations

from collections.abc import Sequence

from dashboard.components.timeline.done import command_entries
from dashboard.components.timeline.entry import Entry
from dashboard.components.timeline.job import attempt_entries, marker_entries, setting_entries
from dashboard.components.timeline.log import AuditIndex
from dashboard.components.timeline.order import newest_first
from dashboard.components.timeline.seen import (
    alert_entries,
    decision_entries,
    incident_entries,
    unlisted_decisions,
)
from stabilizer.protocol.commands import Command
from stabilizer.protocol.decisions import Alert, Incident
from stabilizer.protocol.queries import AuditEntry
from stabilizer.protocol.runs import Attempt
from stabilizer.protocol.views import MarkerInfo


def build_timeline(  # noqa: PLR0913  the history of a run has these parts
    *,
    audit: Sequence[AuditEntry] = (),
    incidents: Sequence[Incident] = (),
    alerts: Sequence[Alert] = (),
    commands: Sequence[Command] = (),
    markers: Sequence[MarkerInfo] = (),
    attempts: Sequence[Attempt] = (),
    global_batch: int | None = None,
) -> list[Entry]:
    """Tell what happened to a run, newest first, nothing twice.

    A decision stands in its incident and in the audit log, a command in its own row, in the log, in
    the attempt that it began and in the marker of the rate that it changed: each is one line here.
    Every source may be incomplete or empty; what the others know is told all the same. With
    `global_batch`, the samples of one step, what was skipped can be told in samples and compared.
    """
    log = AuditIndex(audit)
    by_id = {command.id: command for command in commands}
    entries = [
        *alert_entries(alerts),
        *decision_entries(incidents, by_id, log, global_batch),
        *unlisted_decisions(log),
        *incident_entries(incidents, log),
        *command_entries(commands, incidents, log, global_batch),
        *attempt_entries(attempts, by_id, log),
        *marker_entries(markers, commands),
        *setting_entries(log),  # last: it takes what nobody else has taken
    ]
    return newest_first(entries, attempts)
