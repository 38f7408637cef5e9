"""Sign-in with a name for the audit log and a collector token; sign-out."""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template
from typing import Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import SecretStr
from starlette.requests import ClientDisconnect

from dashboard.app.access import COOKIE, SIGN_IN, local_path, session_of
from dashboard.app.sessions import Sessions
from dashboard.client import Collector
from dashboard.errors import DashboardError, SignInRequiredError
from dashboard.settings import USER_NAME, DashboardSettings
from dashboard.visitor import Visitor

_PAGE: Final = Template(
    (Path(__file__).parent / "templates" / "signin.html").read_text(encoding="utf-8")
)
_MAX_FORM_BYTES: Final = 10_000


def build_router(
    settings: DashboardSettings, sessions: Sessions, collector: Collector
) -> APIRouter:
    """Build the routes for sign-in and sign-out."""
    router = APIRouter(include_in_schema=False)

    @router.get(SIGN_IN)
    async def show(next: str = "/", ended: str = "") -> HTMLResponse:  # noqa: A002  as in the URL
        notice = "Your session has expired. Sign in to continue." if ended else ""
        return _page(settings, local_path(next), notice=notice)

    @router.post(SIGN_IN, response_model=None)
    async def sign_in(request: Request) -> HTMLResponse | RedirectResponse:
        form = await _form(request)
        name, token = form.get("name", "").strip(), form.get("token", "").strip()
        target = local_path(form.get("next", "/"))
        problem = await _problem(settings, collector, name, token)
        if problem:
            return _page(settings, target, name=name, problem=problem)
        sessions.end(session_of(request.headers))
        session = sessions.begin(name, SecretStr(token) if token else None)
        answer = RedirectResponse(target, 303)
        answer.set_cookie(
            COOKIE,
            session,
            max_age=int(sessions.seconds),
            httponly=True,
            samesite="lax",
            secure=settings.secure_cookies,
        )
        return answer

    @router.post("/signout")
    async def sign_out(request: Request) -> RedirectResponse:
        sessions.end(session_of(request.headers))
        answer = RedirectResponse(SIGN_IN if settings.must_sign_in else "/", 303)
        answer.delete_cookie(COOKIE)
        return answer

    return router


async def _form(request: Request) -> dict[str, str]:
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > _MAX_FORM_BYTES:
                return {}
    except ClientDisconnect:  # the client is gone
        return {}
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[-1] for name, values in fields.items()}


async def _problem(settings: DashboardSettings, collector: Collector, name: str, token: str) -> str:
    """Return why sign-in fails; empty if it succeeds. Checks the token with the collector."""
    if not USER_NAME.match(name):
        return (
            "Enter a name: letters, digits, space and . _ @ + -, starting with a letter or digit."
        )
    if not token.isascii() or not token.isprintable():
        return "A token contains printable ASCII characters only."
    try:
        if settings.must_sign_in and await _is_open(collector, name):
            return (
                "Sign-in is disabled: the collector requires no token, so anyone who can reach "
                "this page could control its runs. Start the collector with a token."
            )
        visitor = Visitor(name=name, token=SecretStr(token) if token else None)
        await collector.for_visitor(visitor).control()
    except SignInRequiredError:
        return "The collector rejected this token."
    except DashboardError as error:
        return f"Cannot sign in: {error.message}."
    return ""


async def _is_open(collector: Collector, name: str) -> bool:
    try:
        await collector.for_visitor(Visitor(name=name)).control()
    except SignInRequiredError:
        return False
    return True


def _page(
    settings: DashboardSettings, target: str, *, name: str = "", notice: str = "", problem: str = ""
) -> HTMLResponse:
    text = problem or notice
    page = _PAGE.substitute(
        collector=escape(settings.collector_url),
        next=escape(target),
        name=escape(name),
        notice=f'<p class="{"problem" if problem else "notice"}" role="alert">{escape(text)}</p>'
        if text
        else "",
    )
    return HTMLResponse(page, 403 if problem else 200, {"Cache-Control": "no-store"})
