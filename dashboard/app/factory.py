"""Builds the dashboard: a FastAPI application with Dash's pages in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import dash
import httpx
from dash.types import RendererHooks
from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware

from dashboard import pages
from dashboard.app.access import AccessGuard
from dashboard.app.error_log import ErrorLog
from dashboard.app.sessions import Sessions
from dashboard.app.signin import build_router
from dashboard.callbacks.register import register_callbacks
from dashboard.client import Collector, LiveHub
from dashboard.settings import DashboardSettings
from dashboard.visitor import Visitor, current_visitor
from stabilizer.clock import Clock

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
"""Of Dash's part in the browser: assets/news.js counts by them what is under way."""


def create_app(
    settings: DashboardSettings,
    clock: Clock,
    transport: httpx.AsyncBaseTransport | None = None,
) -> FastAPI:
    """Build the dashboard. Several can be built in one process.

    Args:
        settings: Surroundings; nothing else is read from the environment.
        clock: Source of time.
        transport: How the collector is reached; None is the network.
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
    server.add_middleware(AccessGuard, settings=settings, sessions=sessions)  # outermost
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
    """Answer from the event loop alone: this fails only if the process hangs."""
    return {"status": "ok"}


def _lifespan_of(
    hub: LiveHub, collector: Collector
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(server: FastAPI) -> AsyncIterator[None]:
        await _ask_for_first_page(server)
        try:
            yield
        finally:
            await hub.close()
            await collector.close()

    return lifespan


async def _ask_for_first_page(server: FastAPI) -> None:
    """Make Dash find its assets and pages now.

    It does so at the first request for `/` only; a page that somebody asked for before that would
    come without style and scripts.
    """
    transport = httpx.ASGITransport(server)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        (await client.get("/")).raise_for_status()
