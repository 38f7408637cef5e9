"""Request bodies: size limit, content type, strict JSON."""

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
from stabilizer.web.bodies import BodyTooLargeError, limit_body

JSON: Final = "application/json"
SMALL_BODY_BYTES: Final = 2**20
"""Limit of all bodies but frames, registrations and catalogs; their fields are short."""

Message = TypeVar("Message", bound=BaseModel)


class BoundedRequest(Request):
    """A request that limits the size of its body, also without a Content-Length."""

    max_body_bytes: int = SMALL_BODY_BYTES

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body in pieces; refuse it as soon as it is known to be too large."""
        try:
            async for chunk in limit_body(self.headers, super().stream(), self.max_body_bytes):
                yield chunk
        except BodyTooLargeError as error:
            raise HttpProblem(413, error.code, error.message) from error
        except ClientDisconnect as error:  # no reader is left; keep the log quiet
            raise HttpProblem(400, "body_incomplete", "the body is incomplete") from error

    async def json(self) -> Any:  # noqa: ANN401  any JSON value
        """Parse the body as strict JSON: no NaN, no Infinity, UTF-8 only."""
        return parse_json(await self.body())


class BoundedRoute(APIRoute):
    """A route that reads its body through `BoundedRequest` and accepts JSON only.

    Endpoints that read the raw body themselves (frames, registrations, catalogs) get the limit of
    the settings and check the content type themselves; all others get the small limit.
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
        HttpProblem: It is not one of those allowed.
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


def parse_json(body: bytes) -> Any:  # noqa: ANN401  any JSON value
    """Parse strict JSON.

    Raises:
        HttpProblem: The body is not JSON; NaN and Infinity are not JSON.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        hint = ""
        if b"NaN" in body or b"Infinity" in body:
            hint = '; write "nan", "inf" or "-inf" with quotes'
        raise HttpProblem(400, "malformed_json", f"the body is not JSON: {error}{hint}") from error


def parse_message(body: bytes, model: type[Message]) -> Message:
    """Parse a message from a raw body. Slow for large ones: call it in a worker thread.

    Raises:
        HttpProblem: The body is not JSON.
        RequestValidationError: Fields are invalid; lists all of them.
    """
    try:
        return model.model_validate(parse_json(body))
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error
