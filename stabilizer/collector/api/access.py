"""Access control: bearer tokens, the Host header, and requests made by pages of other sites.

A collector on loopback needs no token. It refuses requests whose Host header names another machine
and requests made by a page of another site (Origin, Sec-Fetch-Site). With tokens the second check
is unnecessary: a browser does not send them by itself.
"""

from __future__ import annotations

import hmac
import re
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from stabilizer.collector.api.error_handlers import error_response, http_response
from stabilizer.collector.api.problems import HttpProblem
from stabilizer.errors import AuthenticationError, InvalidInputError
from stabilizer.settings import CollectorSettings
from stabilizer.web.access import HostCheck, is_loopback_origin

DOCS_FILES: Final = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
"""Files of Swagger UI, served below /docs."""
OPEN_PATHS: Final = frozenset(
    {
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/docs",
        *(f"/docs/{name}" for name in DOCS_FILES),
    }
)
"""Paths that need no token: they only show counts and the description of the API."""

ACTOR_HEADER: Final = "X-Stabilizer-Actor"
DEFAULT_ACTOR: Final = "api"
_ACTOR: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,99}\Z")


class ApiGuard:
    """ASGI middleware that admits or refuses a request by its headers."""

    def __init__(self, app: ASGIApp, settings: CollectorSettings) -> None:
        self._app = app
        self._tokens = tuple(token.get_secret_value().encode() for token in settings.tokens)
        self._hosts = HostCheck(
            on_loopback=settings.is_loopback, allowed_hosts=settings.allowed_hosts
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            if scope["path"] not in OPEN_PATHS:
                self._check_caller(headers)
        except HttpProblem as problem:
            await http_response(problem)(scope, receive, send)
        except AuthenticationError as error:
            await error_response(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        given = headers.get("host", "")
        if not self._hosts.accepts(given):
            raise HttpProblem(
                421,
                "host_not_allowed",
                f"host is {given[:200]!r}; allowed: a name of this machine, or one of the "
                "setting allowed_hosts",
            )

    def _check_caller(self, headers: Headers) -> None:
        if self._tokens:
            self._check_token(headers.get("authorization", ""))
        else:
            self._check_origin(headers)

    def _check_token(self, authorization: str) -> None:
        scheme, _, credentials = authorization.partition(" ")
        given = credentials.strip().encode("utf-8", "surrogateescape")
        # Compare all tokens, so that the duration reveals nothing about any of them.
        matches = [hmac.compare_digest(given, token) for token in self._tokens]
        if scheme.lower() != "bearer" or not any(matches):
            what = "the token is unknown" if authorization else "the token is missing"
            raise AuthenticationError(f"{what}; send the header Authorization: Bearer <token>")

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        is_foreign = origin is not None and not is_loopback_origin(origin)
        if is_foreign or headers.get("sec-fetch-site") == "cross-site":
            raise HttpProblem(
                403,
                "cross_origin",
                f"a page of {origin or 'another site'!r} made this request; allowed: pages of "
                "this machine, or requests with a token",
            )


def parse_actor(header: str | None) -> str:
    """Return the author of a request as the audit log stores it: `person:<name>`.

    The name is a claim, not a proof: the holder of a token may send any.

    Raises:
        InvalidInputError: The header is not a valid name.
    """
    if header is None:
        return f"person:{DEFAULT_ACTOR}"
    if not _ACTOR.match(header):
        allowed = "1 to 100 of a-z A-Z 0-9 space . _ @ + -, a letter or digit first"
        raise InvalidInputError(
            f"{ACTOR_HEADER} is {header[:200]!r}; allowed: {allowed}",
            field=ACTOR_HEADER,
            value=header,
            allowed=allowed,
        )
    return f"person:{header.rstrip()}"
