"""Reading bodies: never more than allowed, never of an unknown kind, never half JSON."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Final, TypeVar

import orjson
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from stabilizer.collector.api.problems import HttpProblem
from stabilizer.settings import CollectorSettings

JSON: Final = "application/json"
SMALL_BODY_BYTES: Final = 2**20
"""For all bodies but frames, registrations and catalogs; the longest field has 2,000 characters."""

Message = TypeVar("Message", bound=BaseModel)


class BoundedRequest(Request):
    """A request whose body is read up to a limit, however it is sent."""

    max_body_bytes: int = SMALL_BODY_BYTES

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Hand on the body piece by piece; refuse it as soon as it is known to be too large."""
        announced = self.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self.max_body_bytes:
            raise self._too_large(f"{announced} bytes announced")
        received = 0
        try:
            async for chunk in super().stream():
                received += len(chunk)
                if received > self.max_body_bytes:
                    raise self._too_large(f"more than {self.max_body_bytes} bytes sent")
                yield chunk
        except ClientDisconnect as error:  # nobody is there to read this; the log stays quiet
            raise HttpProblem(400, "body_incomplete", "the body broke off") from error

    async def json(self) -> Any:  # noqa: ANN401  whatever JSON says
        """Read the body as JSON by the letter: no NaN, no Infinity, UTF-8 only."""
        return parse_json(await self.body())

    def _too_large(self, found: str) -> HttpProblem:
        return HttpProblem(
            413, "body_too_large", f"{found}; allowed: at most {self.max_body_bytes} bytes"
        )


class BoundedRoute(APIRoute):
    """A route that reads its body through `BoundedRequest` and takes JSON only.

    Endpoints that read the raw body themselves (frames, registrations, catalogs) get the limit of
    the settings and look at the content type themselves; all others get the small one.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler."""
        handle = super().get_route_handler()
        is_message = self.body_field is not None

        async def handle_bounded(request: Request) -> Response:
            bounded = BoundedRequest(request.scope, request.receive)
            if is_message:
                check_content_type(request, JSON)
            else:
                settings: CollectorSettings = request.app.state.settings
                bounded.max_body_bytes = settings.max_body_bytes
            return await handle(bounded)

        return handle_bounded


def check_content_type(request: Request, *allowed: str) -> str:
    """Return the content type without its parameters.

    Raises:
        HttpProblem: It is none of those allowed.
    """
    given = request.headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if kind not in allowed:
        raise HttpProblem(
            415,
            "unsupported_media_type",
            f"content-type is {given[:100]!r}; allowed: {' or '.join(allowed)}",
            headers={"Accept": ", ".join(allowed)},
        )
    return kind


def parse_json(body: bytes) -> Any:  # noqa: ANN401  whatever JSON says
    """Read JSON by the letter.

    Raises:
        HttpProblem: The body is not JSON; NaN and Infinity are not JSON either.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        hint = ""
        if b"NaN" in body or b"Infinity" in body:
            hint = '; write "nan", "inf" or "-inf" with quotes'
        raise HttpProblem(400, "malformed_json", f"the body is not JSON: {error}{hint}") from error


def parse_message(body: bytes, model: type[Message]) -> Message:
    """Read a message from a raw body. Slow for large ones: call it in a worker thread.

    Raises:
        HttpProblem: The body is not JSON.
        RequestValidationError: It is, but fields cannot be used; lists all of them.
    """
    try:
        return model.model_validate(parse_json(body))
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error
