"""Who may come in: the Host header, pages of other sites, and the session.

A dashboard on loopback asks nobody to sign in, yet any web page can make a browser send requests to
it: the Host header must be a name of this machine (a page that points its own name at 127.0.0.1
still says its own name), and what changes something must come from our own pages.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dashboard.app.bodies import MAX_BODY_BYTES, read_ahead
from dashboard.app.sessions import Sessions
from dashboard.settings import DashboardSettings
from dashboard.visitor import Visitor, visited_by
from stabilizer.settings import is_loopback

COOKIE: Final = "stabilizer_session"
SIGN_IN: Final = "/signin"
OPEN_PATHS: Final = frozenset({SIGN_IN, "/signout", "/healthz", "/favicon.ico"})
_OPEN_PREFIXES: Final = ("/assets/", "/_dash-component-suites/", "/_favicon.ico")
"""Nothing of any run is in them."""
_SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
_HOST: Final = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::\d{1,5})?\Z")
_OUTDATED: Final = 4401
"""Closes a WebSocket of somebody else than who is there now. Dash's worker opens another after a
second, with the cookie that the browser has then; after 1000 and 4001 it would not."""
_ASKS: Final = '"type":"callback_request"'
"""In what Dash's worker sends when a page, new or connected again, wants something done."""
_SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}


class AccessGuard:
    """ASGI middleware in front of everything, WebSockets included."""

    def __init__(self, app: ASGIApp, settings: DashboardSettings, sessions: Sessions) -> None:
        self._app = app
        self._settings = settings
        self._sessions = sessions
        self._allowed_hosts = frozenset(name.lower() for name in settings.allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through in the name of its visitor, or answer it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        visitor = self.visitor(headers)
        if refusal is None and visitor is None and _is_page(scope, headers):
            refusal = _to_sign_in(scope)
        if refusal is None and scope["type"] == "http":
            whole = await read_ahead(headers, receive)
            refusal = _too_large() if whole is None else None
            receive = whole or receive
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
        """Return who makes a request; None: somebody who must sign in first."""
        found = self._sessions.visitor(session_of(headers))
        if found is not None or self._settings.must_sign_in:
            return found
        return Visitor(name=self._settings.person, token=self._settings.token)

    def _while_up_to_date(
        self, headers: Headers, visitor: Visitor | None, receive: Receive, send: Send
    ) -> Receive:
        """Close a WebSocket when a page asks over it in the name of somebody who is not there now.

        All tabs of a browser share one, and its headers stay those of its beginning: a page that is
        opened after signing in would be told for ever what holds for who came before. Other
        messages pass, so that a tab that merely stays open is not connected again and again.
        """
        num_taken_up = self._sessions.num_taken_up

        async def wrapped() -> Message:
            message = await receive()
            if _ASKS not in (message.get("text") or ""):
                return message
            is_outdated = self.visitor(headers) != visitor
            if visitor is None or visitor.session is None:
                # Whoever has signed in since may be at this browser: its cookie will tell.
                is_outdated |= self._sessions.num_taken_up != num_taken_up
            if not is_outdated:
                return message
            await send({"type": "websocket.close", "code": _OUTDATED, "reason": "signed in anew"})
            return {"type": "websocket.disconnect", "code": _OUTDATED}

        return wrapped

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if not self._knows_host(host):
            return PlainTextResponse(
                f"This dashboard is not known as {host[:200]!r}. "
                "Allowed: a name of this machine, or one of the setting allowed_hosts.\n",
                421,
            )
        if scope["type"] == "http" and scope["method"] in _SAFE_METHODS:
            return None
        origin = headers.get("origin")
        if origin is not None and _host_of(origin) != host.lower():
            return PlainTextResponse(f"A page of {origin[:200]!r} may not do this.\n", 403)
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return PlainTextResponse("A page of another site may not do this.\n", 403)
        return None

    def _knows_host(self, host: str) -> bool:
        if not self._settings.is_loopback and not self._allowed_hosts:
            return True
        match = _HOST.match(host)
        name = match["name"].lower() if match else ""
        # Nobody can make a browser say a name of this machine to another one, wherever we listen.
        return is_loopback(name) or name in self._allowed_hosts


def session_of(headers: Headers) -> str | None:
    """Return the id of the session that a browser sends."""
    return cookie_parser(headers.get("cookie", "")).get(COOKIE)


def local_path(target: str) -> str:
    """Return a path of our own to go on to after signing in; `/` for everything else."""
    is_local = target.startswith("/") and not target.startswith(("//", "/\\"))
    return target if is_local and target.isprintable() else "/"


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _is_page(scope: Scope, headers: Headers) -> bool:
    """Tell whether a person waits for a page, rather than a script of a page for an answer."""
    if scope["type"] != "http" or scope["method"] not in _SAFE_METHODS:
        return False
    path = scope["path"]
    if path in OPEN_PATHS or path.startswith(_OPEN_PREFIXES):
        return False
    return "text/html" in headers.get("accept", "")


def _to_sign_in(scope: Scope) -> Response:
    path, query = scope["raw_path"], scope["query_string"]  # as they were sent, still quoted
    target = path + (b"?" + query if query else b"")
    return RedirectResponse(f"{SIGN_IN}?next={quote(target, safe='')}", 303)


def _too_large() -> Response:
    text = f"A body may have {MAX_BODY_BYTES} bytes at most.\n"
    return PlainTextResponse(text, 413, {"Connection": "close"})  # what is left of it is not read


def _with_security_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return wrapped
