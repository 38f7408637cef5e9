"""Access control: the Host header, requests made by pages of other sites, and the session.

A dashboard on loopback needs no sign-in. It refuses requests whose Host header names another
machine, and requests that change something unless its own pages made them.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request, cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dashboard.app.sessions import Sessions
from dashboard.settings import DashboardSettings
from dashboard.visitor import Visitor, visited_by
from stabilizer.web.access import HostCheck, origin_host
from stabilizer.web.bodies import BodyTooLargeError, limit_body

COOKIE: Final = "stabilizer_session"
SIGN_IN: Final = "/signin"
OPEN_PATHS: Final = frozenset({SIGN_IN, "/signout", "/healthz", "/favicon.ico"})
_OPEN_PREFIXES: Final = ("/assets/", "/_dash-component-suites/", "/_favicon.ico")
"""Need no session: they show no data of any run."""
_SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
MAX_BODY_BYTES: Final = 2**20
"""The largest body of a page reports what its charts show: names, steps and ranges, a few KiB."""
_OUTDATED: Final = 4401
"""Closes a WebSocket whose visitor has changed. Dash's worker opens another after a second, with
the cookie that the browser has then; after 1000 and 4001 it would not."""
_CALLBACK: Final = '"type":"callback_request"'
"""Part of every message by which a page, new or reconnected, requests a callback."""
_SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}


class PageGuard:
    """ASGI middleware in front of everything, WebSockets included."""

    def __init__(self, app: ASGIApp, settings: DashboardSettings, sessions: Sessions) -> None:
        self._app = app
        self._settings = settings
        self._sessions = sessions
        self._hosts = HostCheck(
            on_loopback=settings.is_loopback, allowed_hosts=settings.allowed_hosts
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on in the name of its visitor, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        visitor = self.visitor(headers)
        if refusal is None and visitor is None and _is_page(scope, headers):
            refusal = _to_sign_in(scope)
        if refusal is None and scope["type"] == "http":
            try:
                receive = await read_ahead(scope, receive)
            except BodyTooLargeError as error:
                refusal = _too_large(error)
        if refusal is None:
            if scope["type"] == "websocket":
                receive = self._while_up_to_date(headers, visitor, receive, send)
            with visited_by(visitor):
                await self._app(scope, receive, _with_security_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 4403, "reason": "not allowed"})
        else:
            await refusal(scope, receive, _with_security_headers(send))

    def visitor(self, headers: Headers) -> Visitor | None:
        """Return who makes a request; None if they must sign in first."""
        found = self._sessions.visitor(session_of(headers))
        if found is not None or self._settings.must_sign_in:
            return found
        return Visitor(name=self._settings.person, token=self._settings.token)

    def _while_up_to_date(
        self, headers: Headers, visitor: Visitor | None, receive: Receive, send: Send
    ) -> Receive:
        """Close a WebSocket when a page requests a callback over it after its visitor has changed.

        All tabs of a browser share one WebSocket, and its headers stay those of its handshake: a
        page opened after signing in would act as the visitor before. Other messages pass, so that
        an idle tab does not reconnect again and again.
        """
        num_taken_up = self._sessions.num_taken_up

        async def wrapped() -> Message:
            message = await receive()
            if _CALLBACK not in (message.get("text") or ""):
                return message
            is_outdated = self.visitor(headers) != visitor
            if visitor is None or visitor.session is None:
                # A session started since then may belong to this browser: check its new cookie.
                is_outdated |= self._sessions.num_taken_up != num_taken_up
            if not is_outdated:
                return message
            await send({"type": "websocket.close", "code": _OUTDATED, "reason": "visitor changed"})
            return {"type": "websocket.disconnect", "code": _OUTDATED}

        return wrapped

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if not self._hosts.accepts(host):
            return PlainTextResponse(
                f"Host {host[:200]!r} is not allowed. "
                "Allowed: names of this machine and those in the setting allowed_hosts.\n",
                421,
            )
        if scope["type"] == "http" and scope["method"] in _SAFE_METHODS:
            return None
        origin = headers.get("origin")
        if origin is not None and origin_host(origin) != host.lower():
            return PlainTextResponse(f"Request from another site blocked: {origin[:200]!r}.\n", 403)
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return PlainTextResponse("Request from another site blocked.\n", 403)
        return None


async def read_ahead(scope: Scope, receive: Receive) -> Receive:
    """Read the body of a request before the app does.

    Dash would mistake an error while reading for an empty body.

    Returns:
        A channel that yields the body again, in one piece, and then continues with `receive`.

    Raises:
        BodyTooLargeError: The body has more than MAX_BODY_BYTES.
    """
    request = Request(scope, receive)
    chunks = limit_body(request.headers, request.stream(), MAX_BODY_BYTES)
    try:
        body = b"".join([chunk async for chunk in chunks])
        message: Message = {"type": "http.request", "body": body, "more_body": False}
    except ClientDisconnect:
        message = {"type": "http.disconnect"}
    unread = [message]

    async def replay() -> Message:
        return unread.pop() if unread else await receive()

    return replay


def session_of(headers: Headers) -> str | None:
    """Return the session id that a browser sends."""
    return cookie_parser(headers.get("cookie", "")).get(COOKIE)


def local_path(target: str) -> str:
    """Return the target of a redirect after signing in: a path of this dashboard, else `/`."""
    is_local = target.startswith("/") and not target.startswith(("//", "/\\"))
    return target if is_local and target.isprintable() else "/"


def _is_page(scope: Scope, headers: Headers) -> bool:
    """Return whether a browser requests a page, rather than a script of a page some data."""
    if scope["type"] != "http" or scope["method"] not in _SAFE_METHODS:
        return False
    path = scope["path"]
    if path in OPEN_PATHS or path.startswith(_OPEN_PREFIXES):
        return False
    return "text/html" in headers.get("accept", "")


def _to_sign_in(scope: Scope) -> Response:
    path, query = scope["raw_path"], scope["query_string"]  # still quoted, as sent
    target = path + (b"?" + query if query else b"")
    return RedirectResponse(f"{SIGN_IN}?next={quote(target, safe='')}", 303)


def _too_large(error: BodyTooLargeError) -> Response:
    text = f"Request body too large: {error.message}.\n"
    return PlainTextResponse(text, 413, {"Connection": "close"})  # the rest of it stays unread


def _with_security_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return wrapped
