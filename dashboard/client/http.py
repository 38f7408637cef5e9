"""Requests to the collector, and the mapping of its errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from dashboard.errors import (
    CollectorRefusedError,
    CollectorUnavailableError,
    DashboardError,
    MissingError,
    SignInRequiredError,
)
from dashboard.visitor import Visitor
from stabilizer.protocol.message import Problem

PREFIX: Final = "/api/v1"
ACTOR_HEADER: Final = "X-Stabilizer-Actor"

MAY_HAVE_SUCCEEDED: Final = (
    "The request may have succeeded: check the commands and the audit log before you try again"
)
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Failures before the first byte of a request was sent."""

Parameters: TypeAlias = Mapping[str, str | int | float | bool | Sequence[str] | None]
Answer = TypeVar("Answer")


def headers_of(visitor: Visitor) -> dict[str, str]:
    """Return the headers with the token and with the user name for the audit log."""
    headers = {ACTOR_HEADER: visitor.name}
    if visitor.token is not None:
        headers["Authorization"] = f"Bearer {visitor.token.get_secret_value()}"
    return headers


async def send(
    http: httpx.AsyncClient,
    method: str,
    path: str,
    visitor: Visitor | None,
    *,
    params: Parameters | None = None,
    body: BaseModel | None = None,
) -> bytes:
    """Send a request and return the body of the response.

    Raises:
        SignInRequiredError: There is no visitor, or the collector rejects the token.
        CollectorUnavailableError: No response, or an unexpected one.
        MissingError: The requested object does not exist.
        CollectorRefusedError: The collector rejects the request.
    """
    if visitor is None:
        raise SignInRequiredError("not signed in")
    headers = headers_of(visitor)
    if body is not None:
        headers["Content-Type"] = "application/json"
    try:
        answer = await http.request(
            method,
            PREFIX + path,
            params=_without_none(params or {}),
            content=None if body is None else body.model_dump_json(exclude_none=True),
            headers=headers,
        )
    except httpx.HTTPError as error:
        raise CollectorUnavailableError(
            f"the collector at {http.base_url} is not responding ({type(error).__name__})",
            url=str(http.base_url),
        ) from error
    if answer.is_success:
        return answer.content
    raise refusal(answer)


async def send_change(
    http: httpx.AsyncClient,
    method: str,
    path: str,
    visitor: Visitor | None,
    *,
    params: Parameters | None = None,
    body: BaseModel | None = None,
) -> bytes:
    """Send a request that changes something and return the body of the response.

    Raises:
        CollectorUnavailableError: As for `send`; if only the response may be lost, the message
            says that the request may have succeeded.
        DashboardError: As for `send`.
    """
    try:
        return await send(http, method, path, visitor, params=params, body=body)
    except CollectorUnavailableError as error:
        cause = error.__cause__
        if not isinstance(cause, httpx.HTTPError) or isinstance(cause, _NEVER_SENT):
            raise
        raise CollectorUnavailableError(
            f"{error.message}. {MAY_HAVE_SUCCEEDED}", url=error.url
        ) from error


def refusal(answer: httpx.Response) -> DashboardError:
    """Return the error for an unsuccessful response."""
    url = str(answer.request.url.copy_with(path="/", query=None))
    try:
        problem = Problem.model_validate_json(answer.content)
    except ValidationError:
        return CollectorUnavailableError(
            f"{url} answered with status {answer.status_code} and no error details: "
            "check the address of the collector",
            url=url,
        )
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        return SignInRequiredError(problem.detail)
    if answer.status_code == httpx.codes.NOT_FOUND:
        return MissingError(problem.detail, code=problem.code)
    if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
        return CollectorUnavailableError(f"collector error: {problem.detail}", url=url)
    details = [problem.detail, *(f"{one.field}: {one.allowed}" for one in problem.errors)]
    return CollectorRefusedError("; ".join(details), code=problem.code, status=answer.status_code)


def read(adapter: TypeAdapter[Answer], content: bytes, url: str) -> Answer:
    """Parse a response.

    Raises:
        CollectorUnavailableError: It does not match this version of the protocol.
    """
    try:
        return adapter.validate_json(content)
    except ValidationError as error:
        raise CollectorUnavailableError(
            f"unexpected response from the collector at {url} ({error.error_count()} validation "
            "errors): collector and dashboard must have the same version",
            url=url,
        ) from error


def _without_none(params: Parameters) -> dict[str, str | int | float | bool | Sequence[str]]:
    return {name: value for name, value in params.items() if value is not None}
