"""The collector's REST API as the job uses it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Final, TypeVar
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from stabilizer.agent.telemetry.http import (
    HttpRequest,
    HttpResponse,
    Transport,
    never_cancelled,
)
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.errors import TelemetryError
from stabilizer.protocol.batches import BatchAnswer
from stabilizer.protocol.commands import Command, CommandResult
from stabilizer.protocol.frames import CONTENT_TYPE
from stabilizer.protocol.message import Problem
from stabilizer.protocol.runs import CatalogsAdd, Heartbeat, RunRegister, RunRegistered

logger = logging.getLogger("stabilizer.agent.telemetry")

_API: Final = "/api/v1"
_JSON: Final = "application/json"
_MAX_KNOWN: Final = 100
MAX_COMMANDS: Final = 100
"""Commands that a job takes from one answer."""
_Answer = TypeVar("_Answer", bound=BaseModel)


class RefusedError(TelemetryError):
    """The collector refused a request.

    `code` is the problem document's, or `http_<status>` without one.
    """

    def __init__(
        self, message: str, *, status: int, code: str, retry_after_seconds: float | None
    ) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class TelemetryClient:
    """Typed requests over a transport. Used by the sender thread alone.

    Args:
        transport: Carries the requests.
        settings: Timeouts.
        secret: Token to remove from every message of the collector.
        is_cancelled: Cancels any request; for the end of the job.
    """

    def __init__(
        self,
        transport: Transport,
        settings: ReporterSettings,
        *,
        secret: str | None = None,
        is_cancelled: Callable[[], bool] = never_cancelled,
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._secret = secret
        self._is_cancelled = is_cancelled
        self._ignored: set[str] = set()

    def register(self, message: RunRegister) -> RunRegistered:
        """Register a run; begins an attempt."""
        body = message.model_dump_json().encode()
        return self._ask(RunRegistered, self._post("/runs", body))

    def add_catalogs(self, run_id: str, message: CatalogsAdd) -> None:
        """Make catalogs known; those already known are no error."""
        body = message.model_dump_json().encode()
        self._accepted(self._post(f"/runs/{quote(run_id, safe='')}/catalogs", body))

    def send_frames(self, run_id: str, body: bytes) -> BatchAnswer:
        """Deliver an encoded batch."""
        path = f"/runs/{quote(run_id, safe='')}/frames"
        return self._ask_commands(self._post(path, body, CONTENT_TYPE))

    def heartbeat(self, run_id: str, message: Heartbeat) -> BatchAnswer:
        """Send a heartbeat, which also reports a change of state."""
        body = message.model_dump_json().encode()
        return self._ask_commands(self._post(f"/runs/{quote(run_id, safe='')}/heartbeat", body))

    def poll(
        self,
        run_id: str,
        attempt_id: str,
        *,
        known: Sequence[str],
        wait_seconds: float,
        is_cancelled: Callable[[], bool],
    ) -> BatchAnswer:
        """Wait for commands; the collector answers at once if there is a new one.

        Args:
            run_id: The run.
            attempt_id: The attempt that the job is in.
            known: Commands that the job has received; any other one is new.
            wait_seconds: How long the collector may delay its answer; rounded up to whole seconds.
            is_cancelled: Ends the wait, in addition to the end of the job.
        """
        wait = math.ceil(wait_seconds)
        # An empty name means "none known": without any, only undelivered ones would be new.
        names = [("known", name) for name in known[-_MAX_KNOWN:] or ("",)]
        query = "?" + urlencode([("attempt_id", attempt_id), ("wait", wait), *names])
        request = HttpRequest(
            method="GET",
            path=f"{_API}/runs/{quote(run_id, safe='')}/commands/next{query}",
            timeout_seconds=wait + self._settings.request_timeout_seconds,
            is_cancelled=lambda: self._is_cancelled() or is_cancelled(),
        )
        return self._ask_commands(request)

    def send_result(self, run_id: str, result: CommandResult) -> None:
        """Report the result of a command."""
        command = quote(result.command_id, safe="")
        path = f"/runs/{quote(run_id, safe='')}/commands/{command}/result"
        self._accepted(self._post(path, result.model_dump_json().encode()))

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def _post(self, path: str, body: bytes, content_type: str = _JSON) -> HttpRequest:
        return HttpRequest(
            method="POST",
            path=_API + path,
            body=body,
            content_type=content_type,
            timeout_seconds=self._settings.request_timeout_seconds,
            is_cancelled=self._is_cancelled,
        )

    def _ask(self, model: type[_Answer], request: HttpRequest) -> _Answer:
        return self._parse(model, request, self._accepted(request).body)

    def _ask_commands(self, request: HttpRequest) -> BatchAnswer:
        """Read an answer; a command that is malformed costs itself, not the rest of the answer."""
        body = self._accepted(request).body
        try:
            answer = self._parse(BatchAnswer, request, body)
        except TelemetryError:
            readable, mistakes = leave_out_malformed(body)
            if readable is None:
                raise
            self._warn_once(mistakes)
            answer = self._parse(BatchAnswer, request, readable)
        if len(answer.commands) <= MAX_COMMANDS:
            return answer
        return answer.model_copy(update={"commands": answer.commands[:MAX_COMMANDS]})

    def _warn_once(self, mistakes: Sequence[str]) -> None:
        for mistake in mistakes:
            if mistake not in self._ignored and len(self._ignored) < MAX_COMMANDS:
                self._ignored.add(mistake)
                logger.warning("a command of the collector is ignored: %s", self._clean(mistake))

    def _parse(self, model: type[_Answer], request: HttpRequest, body: bytes) -> _Answer:
        try:
            # A newer collector may send more fields; those that we know must still be valid.
            return model.model_validate_json(body, extra="ignore")
        except ValidationError as error:
            message = f"the answer to {request.method} is not a {model.__name__}: "
            raise TelemetryError(
                self._clean(message + _first_mistake(error)), code="garbage_answer"
            ) from None  # the cause would show the answer, which may repeat our headers

    def _accepted(self, request: HttpRequest) -> HttpResponse:
        response = self._transport.request(request)
        if 200 <= response.status < 300:
            return response
        code, detail = _read_problem(response)
        path = request.path.partition("?")[0]
        raise RefusedError(
            self._clean(f"{request.method} {path}: status {response.status}, {code}: {detail}"),
            status=response.status,
            code=self._clean(code),
            retry_after_seconds=response.retry_after_seconds,
        )

    def _clean(self, text: str) -> str:
        shown = text if self._secret is None else text.replace(self._secret, "***")
        return "".join(c if c.isprintable() else " " for c in shown[:2000])


def leave_out_malformed(body: bytes) -> tuple[bytes | None, list[str]]:
    """Return an answer without the commands that cannot be read, and what is wrong with each.

    None if the commands are not to blame.
    """
    try:
        answer = from_json(body)
    except ValueError:
        return None, []
    commands = answer.get("commands") if isinstance(answer, dict) else None
    if not isinstance(commands, list):
        return None, []
    kept, mistakes = [], []
    for command in commands[:MAX_COMMANDS]:
        try:
            Command.model_validate_json(to_json(command), extra="ignore")
        except ValidationError as error:
            mistakes.append(_first_mistake(error))
        else:
            kept.append(command)
    return (to_json({**answer, "commands": kept}), mistakes) if mistakes else (None, [])


def _first_mistake(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "body"
    return f"{field}: {first['msg']}"


def _read_problem(response: HttpResponse) -> tuple[str, str]:
    """Return code and text of a refusal, which should be a problem document."""
    try:
        problem = Problem.model_validate_json(response.body)
    except ValidationError:
        return (
            f"http_{response.status}",
            f"{len(response.body)} bytes, not a problem document",
        )
    unmentioned = [item for item in problem.errors if item.allowed not in problem.detail]
    fields = "; ".join(f"{item.field}: allowed: {item.allowed}" for item in unmentioned[:10])
    return problem.code[:100], f"{problem.detail} {fields}".rstrip()
