"""Callbacks of a run's page except its charts: incidents, commands and timeline."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

import dash_mantine_components as dmc
from dash import ALL, Dash, Input, Output, State, html, no_update
from dash.development.base_component import Component
from dash.exceptions import PreventUpdate
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dashboard import ids
from dashboard.callbacks.renewal import only_changed
from dashboard.client import Collector, CollectorApi
from dashboard.components.command_card import command_card, preview_panel
from dashboard.components.command_progress import ReadBackContext
from dashboard.components.incident import incident_card, past_incidents
from dashboard.components.problems import problem_of
from dashboard.components.timeline import build_timeline, timeline
from dashboard.errors import (
    CollectorRefusedError,
    CollectorUnavailableError,
    DashboardError,
    MissingError,
    SignInRequiredError,
)
from dashboard.formatting import count
from dashboard.pages.run import run_header, run_place
from stabilizer.clock import Clock
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
"""Settled commands shown as cards; the others are in the timeline."""
_LOOKBACK_STEPS: Final = 50
"""lr_scale is measured at least this often."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """Data of a run's page."""

    run: Run
    incidents: Sequence[Incident]
    alerts: Sequence[Alert]
    commands: Sequence[Command]
    markers: Sequence[MarkerInfo]
    audit: Sequence[AuditEntry]
    rules: RunRules
    previews: Mapping[str, CommandPreview] = field(default_factory=dict)
    """Previews of proposed commands by id; none for a command that can no longer be applied."""
    baselines: Mapping[str, ReadBackContext] = field(default_factory=dict)
    """For the commands shown as cards, by id."""

    @property
    def proposed(self) -> list[Command]:
        """Commands that need approval, oldest first."""
        return [one for one in self.commands if one.state is CommandState.PROPOSED]

    @property
    def shown(self) -> list[Command]:
        """Commands in flight, and the newest settled ones, newest first."""
        in_flight = [
            one
            for one in self.commands
            if not one.is_settled and one.state is not CommandState.PROPOSED
        ]
        settled = [one for one in self.commands if one.is_settled][-_SETTLED_SHOWN:]
        return [*reversed(in_flight), *reversed(settled)]

    @property
    def open_incident(self) -> Incident | None:
        """The unresolved incident, if any."""
        return next((one for one in self.incidents if one.resolved_step is None), None)


async def read_story(client: CollectorApi, run_id: str) -> Story:
    """Read the data of a run's page.

    Raises:
        DashboardError: The collector is not available, or has no such run.
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


async def _preview(client: CollectorApi, command: Command) -> CommandPreview | None:
    try:
        return await client.preview_of(command.id)
    except (
        CollectorRefusedError,
        MissingError,
    ):  # its snapshot is gone, or the run is on a later attempt
        return None


async def _baseline(client: CollectorApi, run: Run, command: Command) -> ReadBackContext:
    applied = None if command.result is None else command.result.applied_step
    if applied is None or not _cuts(command):
        return ReadBackContext(global_batch=run.global_batch)
    query = SeriesQuery(
        series=(Metric.LR_SCALE.value,),
        attempt=command.attempt,
        from_step=max(0, applied - _LOOKBACK_STEPS),
        to_step=applied,
    )
    try:
        found = await client.data(run.id, query)
    except MissingError:  # never measured
        found = []
    scale = found[0].values[-1] if found else None
    return ReadBackContext(global_batch=run.global_batch, lr_scale=scale)


def _cuts(command: Command) -> bool:
    parameters = command.parameters
    if isinstance(parameters, RollbackParameters):
        return parameters.reduce_lr is not None
    return isinstance(parameters, ReduceLrParameters)


@lru_cache(maxsize=64)
def rule_docs(text: str) -> Mapping[str, str]:
    """Return the descriptions of the rules in a rule file, by name."""
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


_PAST_SHOWN: Final = 20
"""Resolved incidents listed; a run may have hundreds."""

PARTS: Final = (
    (ids.RUN_HEADER, "children"),
    (ids.RUN_PROPOSALS, "children"),
    (ids.RUN_INCIDENT, "children"),
    (ids.RUN_COMMANDS, "children"),
    (ids.TIMELINE, "children"),
    (ids.TIMELINE_MORE, "display"),
    (ids.RUN_PAST, "children"),
    (ids.RUN_RULES, "children"),
)
"""Component and property of each part, in the order of `RunView.parts`."""
NAMES: Final = tuple(".".join(part) for part in PARTS)
"""Names of the parts, for their fingerprints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """Content of a run's page."""

    parts: Sequence[Any]
    """One for each of `PARTS`."""
    stable: Sequence[Any]
    """The parts without previews, which change with every step and are updated on their own."""
    previews: Mapping[str, Component]
    """Previews of proposed commands, by id."""
    facts: Mapping[str, Any]


def renewed_previews(
    view: RunView, present: Sequence[Mapping[str, str]], changed: Sequence[Any]
) -> list[Any]:
    """Return the content of the previews on the page, in page order.

    Args:
        view: The new content of the page.
        present: Ids of the previews on the page.
        changed: Parts returned by `only_changed`; new cards include their previews.
    """
    if changed[PARTS.index((ids.RUN_PROPOSALS, "children"))] is not no_update:
        return [no_update] * len(present)
    return [view.previews.get(one["id"]) for one in present]


def view_run(story: Story, now: datetime, limit: int) -> RunView:
    """Build the content of a run's page.

    Args:
        story: Data of the run.
        now: Current time.
        limit: Timeline entries to show.
    """
    docs = rule_docs(story.rules.text)
    entries = build_timeline(
        audit=story.audit,
        incidents=story.incidents,
        alerts=story.alerts,
        commands=story.commands,
        markers=story.markers,
        attempts=story.run.attempts,
        global_batch=story.run.global_batch,
    )
    parts = (
        run_header(story.run),
        [_card(story, one, now) for one in story.proposed],
        _incident(story, docs),
        [_card(story, one, now) for one in story.shown],
        timeline(entries, now=now, limit=limit),
        "block" if len(entries) > limit else "none",
        _past(story),
        _broken_rules(story),
    )
    bare = [_card(replace(story, previews={}), one, now) for one in story.proposed]
    return RunView(
        parts=parts,
        stable=(parts[0], bare, *parts[2:]),
        previews={name: preview_panel(preview) for name, preview in story.previews.items()},
        facts={
            "mode": story.run.mode.value,
            "state": story.run.state.value,
            "attempt": story.run.attempt,
            "step": story.run.step,
            "rules": [rule.name for rule in story.rules.health],
        },
    )


def _card(story: Story, command: Command, now: datetime) -> Component:
    return command_card(
        command,
        now=now,
        preview=story.previews.get(command.id),
        history=story.audit,
        known=story.baselines.get(command.id),
    )


def _incident(story: Story, docs: Mapping[str, str]) -> Component:
    incident = story.open_incident
    if incident is None:
        return html.Div(
            dmc.Text("No open incident.", size="sm", c="dimmed"), className="card quiet"
        )
    return incident_card(incident, docs=docs, step=story.run.step)


def _past(story: Story) -> Component | None:
    past = [one for one in story.incidents if one.resolved_step is not None]
    if not past:
        return None
    past.sort(key=lambda one: one.number, reverse=True)
    earlier = len(past) - _PAST_SHOWN
    more = [html.P(f"{count(earlier)} earlier in the timeline", className="empty")]
    return html.Div(
        [
            html.H3("Past incidents"),
            past_incidents(past[:_PAST_SHOWN]),
            *(more if earlier > 0 else []),
        ]
    )


def _broken_rules(story: Story) -> Component | None:
    broken = [rule for rule in story.rules.health if not rule.ok]
    if not broken:
        return None
    lines = [html.Li(f"{rule.name}: {rule.last_error}") for rule in broken]
    alert: Component = dmc.Alert(html.Ul(lines), title="Broken rules", color="red", variant="light")
    return alert


_HIDDEN = {"display": "none"}


def register(app: Dash, collector: Collector, clock: Clock) -> None:
    """Register the callbacks."""
    _register_story(app, collector, clock)
    _register_place(app, collector, clock)


def _register_story(app: Dash, collector: Collector, clock: Clock) -> None:
    @app.callback(
        output=[
            Output(ids.RUN_PROBLEM, "children"),
            Output(ids.RUN_BODY, "style"),
            *(Output(*part) for part in PARTS),
            Output({"type": ids.PREVIEW, "id": ALL}, "children"),
            Output(ids.RUN_FACTS, "data"),
        ],
        inputs={
            "_updates": [Input(ids.LIVE_DECISIONS, "data"), Input(ids.CLOCK, "n_intervals")],
            "limit": Input(ids.TIMELINE_LIMIT, "data"),
        },
        state={
            "place": {"run_id": State(ids.RUN_ID, "data"), "path": State(ids.URL, "pathname")},
            "facts": State(ids.RUN_FACTS, "data"),
            "previews": State({"type": ids.PREVIEW, "id": ALL}, "id"),
        },
    )
    async def show_story(
        _updates: Any,  # noqa: ANN401  JSON, only its change matters
        limit: int,
        place: dict[str, Any],
        facts: dict[str, Any] | None,
        previews: list[dict[str, str]],
    ) -> tuple[Any, ...]:
        unchanged = [*[no_update] * len(PARTS), [no_update] * len(previews)]
        try:
            story = await read_story(collector.for_request(), place["run_id"])
        except (CollectorUnavailableError, SignInRequiredError) as error:
            if facts:  # the page keeps its content; the banner says why
                raise PreventUpdate from error
            return problem_of(error, place["path"] or "/"), _HIDDEN, *unchanged, no_update
        except DashboardError as error:
            return problem_of(error, place["path"] or "/"), _HIDDEN, *unchanged, None
        view = view_run(story, clock.now(), limit)
        known = (facts or {}).get("digests", {})
        parts, digests = only_changed(NAMES, view.parts, known, view.stable)
        renewed = renewed_previews(view, previews, parts)
        return None, {}, *parts, renewed, {**view.facts, "digests": digests}

    @app.callback(
        Output(ids.TIMELINE_LIMIT, "data"),
        Input(ids.TIMELINE_MORE, "n_clicks"),
        State(ids.TIMELINE_LIMIT, "data"),
        prevent_initial_call=True,
    )
    async def show_earlier(_clicks: int | None, limit: int) -> int:
        return limit * 4


def _register_place(app: Dash, collector: Collector, clock: Clock) -> None:
    @app.callback(
        Output(ids.RUN_PLACE, "children"),
        Input(ids.LIVE_FRAMES, "data"),
        Input(ids.LIVE_DECISIONS, "data"),
        Input(ids.CLOCK, "n_intervals"),
        State(ids.RUN_ID, "data"),
    )
    async def show_place(
        _frames: Any,  # noqa: ANN401  JSON, only its change matters
        _updates: Any,  # noqa: ANN401  likewise
        _clock: int | None,
        run_id: str,
    ) -> Component:
        try:
            return run_place(await collector.for_request().run(run_id), clock.now())
        except DashboardError as error:
            raise PreventUpdate from error
