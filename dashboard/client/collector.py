"""Client of the collector's REST API, with one method per endpoint that the pages use."""

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
"""Older entries of a log are dropped."""
_MOST_LOGS: Final = 16


class AuditLogs:
    """Cache of the audit logs that were read last, shared by all users.

    Every read still requests the newest known entry and those after it, so that an invalid token
    gets nothing and a collector whose log was reset is noticed.
    """

    def __init__(self) -> None:
        self._logs: OrderedDict[str, list[AuditEntry]] = OrderedDict()

    async def read(self, path: str, ask: Callable[[int], Awaitable[AuditPage]]) -> list[AuditEntry]:
        """Return the newest entries of a log, oldest first.

        Args:
            path: Path of the log.
            ask: Returns the page after an id.

        Raises:
            DashboardError: Whatever `ask` raises.
        """
        known = self._logs.get(path, [])
        found = await _read_after(known[-1].id - 1 if known else 0, ask)
        if known and not (found and _is_same(known[-1], found[0])):
            known, found = [], await _read_after(0, ask)
        log = [*known[:-1], *found][-MOST_ENTRIES:]
        self._logs[path] = log
        self._logs.move_to_end(path)
        while len(self._logs) > _MOST_LOGS:
            self._logs.popitem(last=False)
        return list(log)


async def _read_after(after: int, ask: Callable[[int], Awaitable[AuditPage]]) -> list[AuditEntry]:
    found: list[AuditEntry] = []
    next_after: int | None = after
    while next_after is not None:
        page = await ask(next_after)
        found = [*found, *page.entries][-MOST_ENTRIES - 1 :]  # one of them may be known already
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
    """Connections to one collector, shared by all users.

    Args:
        url: Base URL, without a trailing slash.
        timeout_seconds: Timeout of a request.
        transport: For tests; None uses the network.
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
            trust_env=False,  # proxies of the environment are not meant for the collector
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=20),
        )

    def for_visitor(self, visitor: Visitor | None) -> CollectorApi:
        """Return a client that sends requests as this user."""
        return CollectorApi(self, visitor)

    def for_request(self) -> CollectorApi:
        """Return a client for the user of the current request."""
        return CollectorApi(self, current_visitor())

    async def close(self) -> None:
        """Close the connections."""
        await self.http.aclose()


class CollectorApi:
    """Sends requests as one user. Every method raises the errors of `dashboard.errors`."""

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

    # runs and series

    async def overview(self, query: RunQuery) -> Overview:
        """Return one page of run summaries."""
        return await self._get("/overview", _OVERVIEW, _as_parameters(query))

    async def run(self, run_id: str) -> Run:
        """Return a run with its attempts."""
        return await self._get(_run(run_id), _RUN)

    async def series(self, run_id: str) -> list[SeriesInfo]:
        """Return the series of a run."""
        return await self._get(f"{_run(run_id)}/series", _INFOS)

    async def metrics(self, run_id: str) -> list[MetricInfo]:
        """Return the metrics of a run."""
        return await self._get(f"{_run(run_id)}/metrics", _METRICS)

    async def data(self, run_id: str, query: SeriesQuery) -> list[SeriesData]:
        """Return samples; an unknown series raises `MissingError`."""
        return await self._get(f"{_run(run_id)}/series/data", _DATA, _as_parameters(query))

    async def heatmap(self, run_id: str, query: HeatmapQuery) -> Heatmap:
        """Return a metric over layers and steps."""
        return await self._get(f"{_run(run_id)}/heatmap", _HEATMAP, _as_parameters(query))

    # history

    async def incidents(self, run_id: str) -> list[Incident]:
        """Return the incidents of a run, newest first."""
        return await self._get(f"{_run(run_id)}/incidents", _INCIDENTS)

    async def alerts(self, run_id: str) -> list[Alert]:
        """Return the newest alerts of a run, newest first."""
        return await self._get(f"{_run(run_id)}/alerts", _ALERTS, {"limit": _PAGE})

    async def markers(self, run_id: str) -> list[MarkerInfo]:
        """Return the markers that the job reported, oldest first."""
        return await self._get(f"{_run(run_id)}/markers", _MARKERS)

    async def audit(self, run_id: str | None = None) -> list[AuditEntry]:
        """Return the newest 5,000 audit entries of a run, or of all, oldest first."""
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
        """Return the preview of a command."""
        path = f"{_run(run_id)}/commands/preview"
        content = await send(self._collector.http, "POST", path, self._visitor, body=request)
        return read(_PREVIEW, content, self._collector.url)

    async def preview_of(self, command_id: str) -> CommandPreview:
        """Return the current preview of a stored command."""
        return await self._get(f"{_command(command_id)}/preview", _PREVIEW)

    async def send_command(self, run_id: str, command: CommandCreate) -> Command:
        """Send a command."""
        return await self._change("POST", f"{_run(run_id)}/commands", _COMMAND, command)

    async def approve(self, command_id: str, reason: str) -> Command:
        """Approve a proposed command."""
        return await self._answer(command_id, "approve", reason)

    async def reject(self, command_id: str, reason: str) -> Command:
        """Reject a proposed command."""
        return await self._answer(command_id, "reject", reason)

    async def cancel(self, command_id: str, reason: str) -> Command:
        """Cancel a command that the job has not received."""
        return await self._answer(command_id, "cancel", reason)

    async def _answer(self, command_id: str, verb: str, reason: str) -> Command:
        note = Note(reason=reason)
        return await self._change("POST", f"{_command(command_id)}/{verb}", _COMMAND, note)

    # rules, mode, control

    async def rules(self, run_id: str) -> RunRules:
        """Return the rules of a run."""
        return await self._get(f"{_run(run_id)}/rules", _RULES)

    async def set_mode(self, run_id: str, mode: Mode, reason: str) -> Run:
        """Set the mode of a run."""
        return await self._change("PATCH", _run(run_id), _RUN, RunUpdate(mode=mode, reason=reason))

    async def control(self) -> ControlState:
        """Return the global control state with the active silences."""
        return await self._get("/control", _CONTROL)

    async def set_control(self, update: ControlUpdate) -> ControlState:
        """Arm or disarm all runs."""
        return await self._change("PUT", "/control", _CONTROL, update)

    async def silence(self, silence: SilenceCreate) -> Silence:
        """Silence a rule."""
        return await self._change("POST", "/silences", _SILENCE, silence)

    async def end_silence(self, silence_id: str, reason: str) -> None:
        """End a silence early."""
        path = f"/silences/{_segment(silence_id)}"
        params = {"reason": reason}
        await send_change(self._collector.http, "DELETE", path, self._visitor, params=params)


def _run(run_id: str) -> str:
    return f"/runs/{_segment(run_id)}"


def _command(command_id: str) -> str:
    return f"/commands/{_segment(command_id)}"


def _segment(text: str) -> str:
    """Quote one path segment, dots included, so that `..` cannot leave the path."""
    return quote(text, safe="").replace(".", "%2E")


def _as_parameters(query: BaseModel) -> Parameters:
    """Return the query parameters of a query; unset fields are omitted."""
    fields: dict[str, Any] = query.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return {name: value for name, value in fields.items() if value != []}
