"""Everything that happened to a run, asked for at once, and the parts of its page that tell it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dashboard.client import CollectorClient
from dashboard.components.command import Baseline
from dashboard.errors import MissingError, RefusedError
from stabilizer.protocol.commands import (
    Command,
    CommandState,
    ReduceLrParameters,
    RollbackParameters,
)
from stabilizer.protocol.decisions import Alert, Incident
from stabilizer.protocol.metrics import Metric
from stabilizer.protocol.queries import AuditEntry, RunRules, SeriesQuery
from stabilizer.protocol.runs import Run
from stabilizer.protocol.views import CommandPreview, MarkerInfo

_SETTLED_SHOWN: Final = 1
"""Settled commands shown in full; the others stand in the log."""
_LOOK_BACK_STEPS: Final = 50
"""lr_scale is measured at least this often."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """What the collector knows of a run."""

    run: Run
    incidents: Sequence[Incident]
    alerts: Sequence[Alert]
    commands: Sequence[Command]
    markers: Sequence[MarkerInfo]
    audit: Sequence[AuditEntry]
    rules: RunRules
    previews: Mapping[str, CommandPreview] = field(default_factory=dict)
    """Of proposed commands, by their ids; one that cannot be carried out any more has none."""
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    """For the commands that are shown in full, by their ids."""

    @property
    def proposed(self) -> list[Command]:
        """Commands that wait for a person, oldest first."""
        return [one for one in self.commands if one.state is CommandState.PROPOSED]

    @property
    def shown(self) -> list[Command]:
        """Commands under way, and the newest settled ones, newest first."""
        under_way = [
            one
            for one in self.commands
            if not one.is_settled and one.state is not CommandState.PROPOSED
        ]
        settled = [one for one in self.commands if one.is_settled][-_SETTLED_SHOWN:]
        return [*reversed(under_way), *reversed(settled)]

    @property
    def open_incident(self) -> Incident | None:
        """The incident that is not resolved."""
        return next((one for one in self.incidents if one.resolved_step is None), None)


async def read_story(client: CollectorClient, run_id: str) -> Story:
    """Ask for everything that happened to a run.

    Raises:
        DashboardError: The collector cannot be asked, or has no such run.
    """
    (run, rules), (incidents, alerts, commands), (markers, audit) = await asyncio.gather(
        asyncio.gather(client.run(run_id), client.rules(run_id)),
        asyncio.gather(client.incidents(run_id), client.alerts(run_id), client.commands(run_id)),
        asyncio.gather(client.markers(run_id), client.audit(run_id)),
    )
    story = Story(
        run=run,
        incidents=incidents,
        alerts=alerts,
        commands=commands,
        markers=markers,
        audit=audit,
        rules=rules,
    )
    previews, baselines = await asyncio.gather(
        asyncio.gather(*(_preview(client, one) for one in story.proposed)),
        asyncio.gather(*(_baseline(client, run, one) for one in story.shown)),
    )
    return replace(
        story,
        previews={one.id: seen for one, seen in zip(story.proposed, previews, strict=True) if seen},
        baselines={one.id: base for one, base in zip(story.shown, baselines, strict=True)},
    )


async def _preview(client: CollectorClient, command: Command) -> CommandPreview | None:
    try:
        return await client.preview_of(command.id)
    except (RefusedError, MissingError):  # its snapshot is gone, or the run has gone on
        return None


async def _baseline(client: CollectorClient, run: Run, command: Command) -> Baseline:
    applied = None if command.result is None else command.result.applied_step
    if applied is None or not _cuts(command):
        return Baseline(global_batch=run.global_batch)
    query = SeriesQuery(
        series=(Metric.LR_SCALE.value,),
        attempt=command.attempt,
        from_step=max(0, applied - _LOOK_BACK_STEPS),
        to_step=applied,
    )
    try:
        found = await client.data(run.id, query)
    except MissingError:  # never measured
        found = []
    scale = found[0].values[-1] if found else None
    return Baseline(global_batch=run.global_batch, lr_scale=scale)


def _cuts(command: Command) -> bool:
    parameters = command.parameters
    if isinstance(parameters, RollbackParameters):
        return parameters.reduce_lr is not None
    return isinstance(parameters, ReduceLrParameters)


@lru_cache(maxsize=64)
def rule_docs(text: str) -> Mapping[str, str]:
    """Return what each rule of a rule file says of itself."""
    try:
        document = YAML(typ="safe").load(text)
    except YAMLError:
        return {}
    rules = document.get("rules") if isinstance(document, dict) else None
    if not isinstance(rules, list):
        return {}
    return {
        str(rule.get("name")): str(rule.get("doc", "")) for rule in rules if isinstance(rule, dict)
    }
