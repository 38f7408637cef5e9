"""What the demo asks the collector, over HTTP as any script would."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import httpx
from pydantic import TypeAdapter

from stabilizer.protocol.commands import Command
from stabilizer.protocol.decisions import Alert, Incident
from stabilizer.protocol.queries import RunPage, SeriesData
from stabilizer.protocol.runs import Run

_ALERTS: Final = TypeAdapter(list[Alert])
_COMMANDS: Final = TypeAdapter(list[Command])
_INCIDENTS: Final = TypeAdapter(list[Incident])
_SERIES: Final = TypeAdapter(list[SeriesData])


class CollectorClient:
    """Reads runs, alerts, incidents, commands and series.

    Args:
        url: Base address of the collector, for example `http://127.0.0.1:8000`.
        transport: For tests; None talks to the network.
    """

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        self._http = httpx.Client(
            base_url=f"{url}/api/v1", transport=transport, timeout=30.0, trust_env=False
        )

    def run_named(self, name: str) -> Run | None:
        """Return the run of this name with its attempts, or None if it has not come yet."""
        page = RunPage.model_validate_json(self._get("/runs", name=name))
        found = [run for run in page.runs if run.name == name]
        return Run.model_validate_json(self._get(f"/runs/{found[0].id}")) if found else None

    def alerts(self, run_id: str) -> list[Alert]:
        """Return the alerts of a run."""
        return _ALERTS.validate_json(self._get(f"/runs/{run_id}/alerts", limit=1000))

    def incidents(self, run_id: str) -> list[Incident]:
        """Return the incidents of a run with their decisions."""
        return _INCIDENTS.validate_json(self._get(f"/runs/{run_id}/incidents"))

    def commands(self, run_id: str) -> list[Command]:
        """Return the commands of a run with what the job read back."""
        return _COMMANDS.validate_json(self._get(f"/runs/{run_id}/commands"))

    def series(self, run_id: str, names: Sequence[str]) -> list[SeriesData]:
        """Return all samples of the series, each attempt on its own."""
        return _SERIES.validate_json(self._get(f"/runs/{run_id}/series/data", series=list(names)))

    def _get(self, path: str, **params: str | int | list[str]) -> bytes:
        answer = self._http.get(path, params=params)
        answer.raise_for_status()
        return answer.content

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()
