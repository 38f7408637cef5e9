"""Where `import` and `follow` store runs: a collector over HTTP, or a database of this machine."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final, TypeVar
from urllib.parse import quote, urlsplit

import typer
from pydantic import BaseModel, ValidationError

from stabilizer.cli.failures import needs_extra
from stabilizer.clock import SystemClock
from stabilizer.errors import ConfigurationError, InvalidInputError, TelemetryError
from stabilizer.protocol.batches import BatchAnswer, BatchHeader
from stabilizer.protocol.frames import CONTENT_TYPE, Batch, FrameBlock, encode_batch
from stabilizer.protocol.queries import RulesChange, RulesHistory, RulesUpdate
from stabilizer.protocol.runs import CatalogsAdd, Heartbeat, Run, RunRegister, RunRegistered
from stabilizer.replay.upload import RunStore
from stabilizer.settings import load_collector_settings

if TYPE_CHECKING:
    from stabilizer.collector.services.container import Services

_TIMEOUT_SECONDS: Final = 60.0
_RETRIED: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_Answer = TypeVar("_Answer", bound=BaseModel)

CollectorOption = Annotated[
    str | None, typer.Option("--collector", help="URL of a collector, http or https.")
]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", envvar="STABILIZER_TOKEN", help="For the collector."),
]


class HttpRunStore:
    """A collector's REST API.

    Args:
        url: Its address.
        token: Bearer token; None on loopback.

    Raises:
        ConfigurationError: The address is none of a collector.
    """

    def __init__(self, url: str, token: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigurationError(f"collector is {url!r}; allowed: http://HOST or https://HOST")
        self._api = f"{url.rstrip('/')}/api/v1"
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def register(self, register: RunRegister) -> RunRegistered:
        """Register a run."""
        return self._ask(RunRegistered, "/runs", register.model_dump_json().encode())

    def run(self, run_id: str) -> Run:
        """Return a run with its attempts."""
        return self._ask(Run, f"/runs/{quote(run_id, safe='')}")

    def add_catalogs(self, run_id: str, message: CatalogsAdd) -> None:
        """Store catalogs."""
        path = f"/runs/{quote(run_id, safe='')}/catalogs"
        self._request(path, message.model_dump_json().encode())

    def send(self, run_id: str, header: BatchHeader, blocks: Sequence[FrameBlock]) -> BatchAnswer:
        """Store a batch."""
        path = f"/runs/{quote(run_id, safe='')}/frames"
        return self._ask(BatchAnswer, path, encode_batch(header, blocks), CONTENT_TYPE)

    def heartbeat(self, run_id: str, heartbeat: Heartbeat) -> BatchAnswer:
        """Report a state."""
        path = f"/runs/{quote(run_id, safe='')}/heartbeat"
        return self._ask(BatchAnswer, path, heartbeat.model_dump_json().encode())

    def change_rules(self, run_id: str | None, update: RulesUpdate) -> RulesChange:
        """Change the rules of a run; those of the collector without one."""
        body = update.model_dump_json().encode()
        return self._ask(RulesChange, _rules_of(run_id), body, method="PUT")

    def rules_history(self, run_id: str | None) -> RulesHistory:
        """Return the versions of a run's rules; of the collector's without a run."""
        return self._ask(RulesHistory, f"{_rules_of(run_id)}/versions")

    def _ask(
        self,
        model: type[_Answer],
        path: str,
        body: bytes | None = None,
        kind: str = "",
        method: str | None = None,
    ) -> _Answer:
        try:
            answer = self._request(path, body, kind, method)
            return model.model_validate_json(answer, extra="ignore")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise TelemetryError(f"{path}: not the answer of a collector: {first['msg']}") from None

    def _request(
        self, path: str, body: bytes | None = None, kind: str = "", method: str | None = None
    ) -> bytes:
        headers = {"Content-Type": kind or "application/json", **self._headers}
        url = self._api + path
        request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310  checked
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310  http(s)
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            with error:
                text = f"{path}: status {error.code}: {_detail(error.read(100_000))}"
            if error.code in _RETRIED:
                raise TelemetryError(text) from None
            raise InvalidInputError(text, field="request", code=f"http_{error.code}") from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise TelemetryError(f"the collector cannot be reached: {reason}") from None


def _rules_of(run_id: str | None) -> str:
    return "/rules" if run_id is None else f"/runs/{quote(run_id, safe='')}/rules"


def _detail(body: bytes) -> str:
    try:
        problem = json.loads(body)
        return str(problem["detail"])[:2000]
    except (ValueError, KeyError, TypeError):
        return f"{len(body)} bytes that are no problem document"


class DatabaseRunStore:
    """A database that no collector has open."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def register(self, register: RunRegister) -> RunRegistered:
        """Register a run."""
        return self._services.runs.register(register)

    def run(self, run_id: str) -> Run:
        """Return a run with its attempts."""
        return self._services.runs.get(run_id)

    def add_catalogs(self, run_id: str, message: CatalogsAdd) -> None:
        """Store catalogs."""
        self._services.runs.add_catalogs(run_id, message)

    def send(self, run_id: str, header: BatchHeader, blocks: Sequence[FrameBlock]) -> BatchAnswer:
        """Store a batch."""
        return self._services.ingest.accept(run_id, Batch(header, tuple(blocks)))

    def heartbeat(self, run_id: str, heartbeat: Heartbeat) -> BatchAnswer:
        """Report a state."""
        return self._services.runs.heartbeat(run_id, heartbeat)


@contextmanager
def open_run_store(
    collector: str | None, token: str | None, database: str | None
) -> Iterator[RunStore]:
    """Open the collector if one is given, else a database.

    Raises:
        ConfigurationError: Both are given, or one is invalid.
        StorageError: The database cannot be used, for example while a collector has it open.
    """
    if collector is not None:
        if database is not None:
            raise ConfigurationError("give either --collector or --database")
        yield HttpRunStore(collector, token)
        return
    settings = load_collector_settings(**({"database_url": database} if database else {}))
    with needs_extra("collector"):
        from stabilizer.collector.services.container import (  # noqa: PLC0415  an extra
            build_services,
        )
    services = build_services(settings, SystemClock())
    try:
        yield DatabaseRunStore(services)
    finally:
        services.close()
