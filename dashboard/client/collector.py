"""The collector as the pages see it: one method for each thing that they ask."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter

from dashboard.client.http import Parameters, read, send, send_change
from dashboard.visitor import Visitor, current_visitor
from stabilizer.protocol.commands import Command
from stabilizer.protocol.decisions import Alert, Incident, Mode
from stabilizer.protocol.queries import (
    AuditEntry,
    AuditPage,
    CommandCreate,
    ControlState,
    ControlUpdate,
    Note,
    RunQuery,
    RunRules,
    SeriesData,
    SeriesInfo,
    SeriesQuery,
    Silence,
    SilenceCreate,
)
from stabilizer.protocol.runs import Run, RunUpdate
from stabilizer.protocol.views import (
    CommandPreview,
    CommandPreviewRequest,
    Heatmap,
    HeatmapQuery,
    MarkerInfo,
    MetricInfo,
    Overview,
    SnapshotState,
)

MOST_ENTRIES: Final = 5000
"""Of a longer log the oldest entries are left out."""
_MOST_LOGS: Final = 16


class AuditLogs:
    """Keeps the logs that were asked for last.

    They are shared by everybody. Each reading asks the collector for what is new all the same, and
    for the newest entry that is known: so a token that it does not take gets nothing, and a
    collector that has begun another log is noticed.
    """

    def __init__(self) -> None:
        self._logs: OrderedDict[str, list[AuditEntry]] = OrderedDict()

    async def read(self, path: str, ask: Callable[[int], Awaitable[AuditPage]]) -> list[AuditEntry]:
        """Return the newest entries of a log, oldest first.

        Args:
            path: Of the log.
            ask: Gives the page behind an id.

        Raises:
            DashboardError: Whatever `ask` raises.
        """
        known = self._logs.get(path, [])
        found = await _read_behind(known[-1].id - 1 if known else 0, ask)
        if known and not (found and _is_same(known[-1], found[0])):
            known, found = [], await _read_behind(0, ask)
        log = [*known[:-1], *found][-MOST_ENTRIES:]
        self._logs[path] = log
        self._logs.move_to_end(path)
        while len(self._logs) > _MOST_LOGS:
            self._logs.popitem(last=False)
        return list(log)


async def _read_behind(after: int, ask: Callable[[int], Awaitable[AuditPage]]) -> list[AuditEntry]:
    found: list[AuditEntry] = []
    next_after: int | None = after
    while next_after is not None:
        page = await ask(next_after)
        found = [*found, *page.entries][-MOST_ENTRIES - 1 :]  # one of them may be known
        next_after = page.next_after
    return found


def _is_same(one: AuditEntry, other: AuditEntry) -> bool:
    return (one.id, one.at, one.subject) == (other.id, other.at, other.subject)


Answer = TypeVar("Answer")
_PAGE: Final = 1000

_ALERTS: Final = TypeAdapter(list[Alert])
_AUDIT: Final = TypeAdapter(AuditPage)
_COMMAND: Final = TypeAdapter(Command)
_COMMANDS: Final = TypeAdapter(list[Command])
_CONTROL: Final = TypeAdapter(ControlState)
_DATA: Final = TypeAdapter(list[SeriesData])
_HEATMAP: Final = TypeAdapter(Heatmap)
_INCIDENTS: Final = TypeAdapter(list[Incident])
_INFOS: Final = TypeAdapter(list[SeriesInfo])
_MARKERS: Final = TypeAdapter(list[MarkerInfo])
_METRICS: Final = TypeAdapter(list[MetricInfo])
_OVERVIEW: Final = TypeAdapter(Overview)
_PREVIEW: Final = TypeAdapter(CommandPreview)
_RULES: Final = TypeAdapter(RunRules)
_RUN: Final = TypeAdapter(Run)
_SILENCE: Final = TypeAdapter(Silence)
_SNAPSHOTS: Final = TypeAdapter(list[SnapshotState])


class Collector:
    """The connections to one collector, shared by everybody at the dashboard.

    Args:
        url: Base address, without a slash at the end.
        timeout_seconds: How long an answer may take.
        transport: For tests; None talks to the network.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url
        self.audit_logs = AuditLogs()
        self.http = httpx.AsyncClient(
            base_url=url,
            timeout=timeout_seconds,
            transport=transport,
            trust_env=False,  # a proxy for the outside world is not one for the collector
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=20),
        )

    def asked_by(self, visitor: Visitor | None) -> CollectorApi:
        """Ask in the name of a person."""
        return CollectorApi(self, visitor)

    def asked_now(self) -> CollectorApi:
        """Ask in the name of whoever made the present request."""
        return CollectorApi(self, current_visitor())

    async def close(self) -> None:
        """Close the connections."""
        await self.http.aclose()


class CollectorApi:
    """Asks in the name of one person.

    Every method raises the errors of `dashboard.errors`.
    """

    def __init__(self, collector: Collector, visitor: Visitor | None) -> None:
        self._collector = collector
        self._visitor = visitor

    async def _get(
        self, path: str, adapter: TypeAdapter[Answer], params: Parameters | None = None
    ) -> Answer:
        content = await send(self._collector.http, "GET", path, self._visitor, params=params)
        return read(adapter, content, self._collector.url)

    async def _change(
        self, method: str, path: str, adapter: TypeAdapter[Answer], body: BaseModel
    ) -> Answer:
        content = await send_change(self._collector.http, method, path, self._visitor, body=body)
        return read(adapter, content, self._collector.url)

    # what there is

    async def overview(self, query: RunQuery) -> Overview:
        """Return a page of runs with what a list shows of each."""
        return await self._get("/overview", _OVERVIEW, _as_parameters(query))

    async def run(self, run_id: str) -> Run:
        """Return a run with its attempts."""
        return await self._get(_run(run_id), _RUN)

    async def series(self, run_id: str) -> list[SeriesInfo]:
        """Return the series that a run has."""
        return await self._get(f"{_run(run_id)}/series", _INFOS)

    async def metrics(self, run_id: str) -> list[MetricInfo]:
        """Return the metrics that a run has."""
        return await self._get(f"{_run(run_id)}/metrics", _METRICS)

    async def data(self, run_id: str, query: SeriesQuery) -> list[SeriesData]:
        """Return samples. A series that the run does not have is missing (`MissingError`)."""
        return await self._get(f"{_run(run_id)}/series/data", _DATA, _as_parameters(query))

    async def heatmap(self, run_id: str, query: HeatmapQuery) -> Heatmap:
        """Return a metric over layers and steps."""
        return await self._get(f"{_run(run_id)}/heatmap", _HEATMAP, _as_parameters(query))

    # what happened

    async def incidents(self, run_id: str) -> list[Incident]:
        """Return the incidents of a run, newest first."""
        return await self._get(f"{_run(run_id)}/incidents", _INCIDENTS)

    async def alerts(self, run_id: str) -> list[Alert]:
        """Return the newest alerts of a run, newest first."""
        return await self._get(f"{_run(run_id)}/alerts", _ALERTS, {"limit": _PAGE})

    async def markers(self, run_id: str) -> list[MarkerInfo]:
        """Return the events that the job told, oldest first."""
        return await self._get(f"{_run(run_id)}/markers", _MARKERS)

    async def audit(self, run_id: str | None = None) -> list[AuditEntry]:
        """Return what was done to a run, or to anything, oldest first; the newest 5,000."""
        path = "/audit" if run_id is None else f"{_run(run_id)}/audit"

        async def ask(after: int) -> AuditPage:
            return await self._get(path, _AUDIT, {"after": after, "limit": _PAGE})

        return await self._collector.audit_logs.read(path, ask)

    # commands

    async def commands(self, run_id: str) -> list[Command]:
        """Return the commands of a run, oldest first."""
        return await self._get(f"{_run(run_id)}/commands", _COMMANDS)

    async def command(self, command_id: str) -> Command:
        """Return a command."""
        return await self._get(_command(command_id), _COMMAND)

    async def snapshots(self, run_id: str) -> list[SnapshotState]:
        """Return the snapshots that the job holds, newest first."""
        return await self._get(f"{_run(run_id)}/snapshots", _SNAPSHOTS)

    async def preview(self, run_id: str, request: CommandPreviewRequest) -> CommandPreview:
        """Return what a command would do."""
        path = f"{_run(run_id)}/commands/preview"
        content = await send(self._collector.http, "POST", path, self._visitor, body=request)
        return read(_PREVIEW, content, self._collector.url)

    async def preview_of(self, command_id: str) -> CommandPreview:
        """Return what a stored command would do now."""
        return await self._get(f"{_command(command_id)}/preview", _PREVIEW)

    async def send_command(self, run_id: str, command: CommandCreate) -> Command:
        """Give a command by hand."""
        return await self._change("POST", f"{_run(run_id)}/commands", _COMMAND, command)

    async def approve(self, command_id: str, reason: str) -> Command:
        """Let a proposed command go to the job."""
        return await self._answer(command_id, "approve", reason)

    async def reject(self, command_id: str, reason: str) -> Command:
        """Refuse a proposed command."""
        return await self._answer(command_id, "reject", reason)

    async def cancel(self, command_id: str, reason: str) -> Command:
        """Take back a command that the job does not have."""
        return await self._answer(command_id, "cancel", reason)

    async def _answer(self, command_id: str, verb: str, reason: str) -> Command:
        note = Note(reason=reason)
        return await self._change("POST", f"{_command(command_id)}/{verb}", _COMMAND, note)

    # the switches

    async def rules(self, run_id: str) -> RunRules:
        """Return the rules that judge a run."""
        return await self._get(f"{_run(run_id)}/rules", _RULES)

    async def set_mode(self, run_id: str, mode: Mode, reason: str) -> Run:
        """Say how far the policy may go on a run."""
        return await self._change("PATCH", _run(run_id), _RUN, RunUpdate(mode=mode, reason=reason))

    async def control(self) -> ControlState:
        """Return the switch over all runs, and the silences in force."""
        return await self._get("/control", _CONTROL)

    async def set_control(self, update: ControlUpdate) -> ControlState:
        """Arm or disarm the policy of all runs."""
        return await self._change("PUT", "/control", _CONTROL, update)

    async def silence(self, silence: SilenceCreate) -> Silence:
        """Mute a rule."""
        return await self._change("POST", "/silences", _SILENCE, silence)

    async def end_silence(self, silence_id: str, reason: str) -> None:
        """End a silence before its time."""
        path = f"/silences/{_segment(silence_id)}"
        params = {"reason": reason}
        await send_change(self._collector.http, "DELETE", path, self._visitor, params=params)


def _run(run_id: str) -> str:
    return f"/runs/{_segment(run_id)}"


def _command(command_id: str) -> str:
    return f"/commands/{_segment(command_id)}"


def _segment(text: str) -> str:
    """Quote one part of a path; also the dots, with which `..` would lead to another path."""
    return quote(text, safe="").replace(".", "%2E")


def _as_parameters(query: BaseModel) -> Parameters:
    """Write a query as the collector reads it; what was left at its default is left out."""
    fields: dict[str, Any] = query.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return {name: value for name, value in fields.items() if value != []}
