"""The dashboard as a FastAPI application with the pages of Dash, and as a server process."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import dash
import httpx
from dash.exceptions import PreventUpdate
from dash.types import RendererHooks
from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from dashboard import pages
from dashboard.app.access import PageGuard
from dashboard.app.sessions import Sessions
from dashboard.app.signin import build_router
from dashboard.callbacks import register_callbacks
from dashboard.client import Collector, LiveHub
from dashboard.settings import DashboardSettings
from dashboard.visitor import Visitor, current_visitor
from stabilizer.clock import Clock
from stabilizer.web import server as web_server

logger = logging.getLogger(__name__)

_GRACE_SECONDS: Final = 3
"""Open pages hold a connection; a shutdown closes it after this."""
_MAX_MESSAGE_BYTES: Final = 2**16
"""Limit of a WebSocket message. A page sends which callback it requests and its own address, some
hundred bytes; the default limit is 16 MiB."""
_PACKAGE: Final = Path(__file__).parents[1]

_PAGES: Final[dict[str, dict[str, Any]]] = {
    "runs": {"path": "/", "title": "Runs - Stabilizer", "layout": pages.runs},
    "run": {"path_template": "/runs/<run_id>", "title": "Run - Stabilizer", "layout": pages.run},
    "control": {"path": "/control", "title": "Control - Stabilizer", "layout": pages.control},
    "not_found_404": {"title": "Not found - Stabilizer", "layout": pages.not_found},
}

_HOOKS: Final[RendererHooks] = {
    "request_pre": "window.dash_clientside.stabilizer.requestBegan",
    "callback_resolved": "window.dash_clientside.stabilizer.requestEnded",
}
"""Hooks of Dash in the browser, by which assets/updates.js counts the open requests."""


def create_app(
    settings: DashboardSettings,
    clock: Clock,
    transport: httpx.AsyncBaseTransport | None = None,
) -> FastAPI:
    """Build the dashboard. Several can be built in one process.

    Args:
        settings: Configuration; nothing else is read from the environment.
        clock: Source of time.
        transport: How to reach the collector; None is the network.
    """
    collector = Collector(
        settings.collector_url, timeout_seconds=settings.timeout_seconds, transport=transport
    )
    hub = LiveHub(collector, clock)
    sessions = Sessions(clock, settings.session_hours)
    server = FastAPI(
        title="Stabilizer dashboard",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_lifespan_of(hub, collector),
    )
    server.add_api_route("/healthz", _healthz, include_in_schema=False)
    server.include_router(build_router(settings, sessions, collector))
    server.add_middleware(ErrorLog)
    app = _build_dash(server)

    def is_signed_in(visitor: Visitor) -> bool:
        return visitor.session is None or sessions.visitor(visitor.session) is not None

    register_callbacks(app, collector, hub, clock, is_signed_in)
    server.add_middleware(GZipMiddleware, minimum_size=1000, compresslevel=1)
    server.add_middleware(PageGuard, settings=settings, sessions=sessions)  # outermost
    return server


def _build_dash(server: FastAPI) -> dash.Dash:
    app = dash.Dash(
        __name__,
        server=server,  # type: ignore[arg-type]  # typed as Flask's, whatever the backend
        backend="fastapi",
        use_pages=True,
        pages_folder="",
        assets_folder=str(_PACKAGE / "assets"),
        serve_locally=True,
        suppress_callback_exceptions=True,
        title="Stabilizer",
        update_title="",
        hooks=_HOOKS,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
    )
    for name, page in _PAGES.items():
        dash.register_page(name, **page)  # type: ignore[no-untyped-call]  # Dash's
    app.layout = lambda: pages.shell(current_visitor())
    return app


async def _healthz() -> dict[str, str]:
    """Answer from the event loop alone: fails only if the process hangs."""
    return {"status": "ok"}


def _lifespan_of(
    hub: LiveHub, collector: Collector
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(server: FastAPI) -> AsyncIterator[None]:
        await _request_first_page(server)
        try:
            yield
        finally:
            await hub.close()
            await collector.close()

    return lifespan


async def _request_first_page(server: FastAPI) -> None:
    """Make Dash collect its assets and pages at start-up.

    Dash does so at the first request for `/`; any page requested before that would lack its style
    and scripts.
    """
    transport = httpx.ASGITransport(server)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        (await client.get("/")).raise_for_status()


class ErrorLog:
    """ASGI middleware that logs errors of callbacks: Dash returns 500 without a log entry."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; log an error and raise it again."""
        try:
            await self._app(scope, receive, send)
        except PreventUpdate:
            raise
        except Exception:
            logger.exception("%s failed", scope.get("path", scope["type"]))
            raise


def run_server(settings: DashboardSettings, clock: Clock, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: Configuration.
        clock: Source of time.
        on_ready: Called once with the URL when the dashboard accepts requests.

    Raises:
        ConfigurationError: The address cannot be used.
    """
    with web_server.listen(settings.host, settings.port) as listener:
        web_server.run(
            create_app(settings, clock),
            listener,
            on_ready,
            ws_max_size=_MAX_MESSAGE_BYTES,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
