"""Who may come in: bearer tokens, the Host header, and pages of other sites in a browser.

A collector on loopback needs no token, yet any web page can make a browser send requests to it.
Two checks keep such pages out: the Host header must be a name of this machine (a page that points
its own name at 127.0.0.1 still says its own name), and a request that a page of another site made
(Origin, Sec-Fetch-Site) is refused. With tokens the second check is not needed: a browser does not
send them by itself.
"""

from __future__ import annotations

import hmac
import re
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from stabilizer.collector.api.error_handlers import error_response, http_response
from stabilizer.collector.api.problems import HttpProblem
from stabilizer.errors import AuthenticationError, InvalidInputError
from stabilizer.settings import CollectorSettings, is_loopback

OPEN_PATHS: Final = frozenset(
    {"/healthz", "/readyz", "/metrics", "/docs", "/redoc", "/openapi.json"}
)
"""No token needed: they change nothing, and show counts and this API's description only."""

ACTOR_HEADER: Final = "X-Stabilizer-Actor"
DEFAULT_ACTOR: Final = "api"
_ACTOR: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,99}\Z")
_HOST: Final = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::\d{1,5})?\Z")


class AccessGuard:
    """ASGI middleware in front of all paths; looks at headers only, never at a body."""

    def __init__(self, app: ASGIApp, settings: CollectorSettings) -> None:
        self._app = app
        self._tokens = tuple(token.get_secret_value().encode() for token in settings.tokens)
        self._allowed_hosts = frozenset(name.lower() for name in settings.allowed_hosts)
        self._checks_host = settings.is_loopback or bool(self._allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through or answer it with a refusal."""
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
        if not self._checks_host:
            return
        given = headers.get("host", "")
        match = _HOST.match(given)
        name = match["name"].lower() if match else ""
        if not is_loopback(name) and name not in self._allowed_hosts:
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
        # Every token is compared, so that the time taken tells nothing about which one was near.
        matches = [hmac.compare_digest(given, token) for token in self._tokens]
        if scheme.lower() != "bearer" or not any(matches):
            what = "the token is not one of ours" if authorization else "there is no token"
            raise AuthenticationError(f"{what}; send the header Authorization: Bearer <token>")

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        is_foreign = origin is not None and not _is_loopback_origin(origin)
        if is_foreign or headers.get("sec-fetch-site") == "cross-site":
            raise HttpProblem(
                403,
                "cross_origin",
                f"a page of {origin or 'another site'!r} made this request; allowed: pages of "
                "this machine, or requests with a token",
            )


def _is_loopback_origin(origin: str) -> bool:
    try:
        name = urlsplit(origin).hostname
    except ValueError:
        return False
    return name is not None and is_loopback(name)


def parse_actor(header: str | None) -> str:
    """Name the person of a request as the audit log keeps it: `person:<name>`.

    The name is a statement, not a proof: who holds a token may write any.

    Raises:
        InvalidInputError: The header is not a name.
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
