"""The collector as an ASGI application and as a process."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache, partial
from typing import Final

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

from stabilizer import __version__
from stabilizer.clock import Clock
from stabilizer.collector.api.access import ApiGuard
from stabilizer.collector.api.error_handlers import add_error_handlers
from stabilizer.collector.api.metrics import Metrics, RequestMetrics
from stabilizer.collector.api.openapi import add_docs_page, describe, operation_id
from stabilizer.collector.api.routers import (
    commands,
    control,
    events,
    health,
    incidents,
    rules,
    runs,
    series,
    telemetry,
)
from stabilizer.collector.api.sweeper import Sweeper
from stabilizer.collector.services.container import Services, build_services
from stabilizer.settings import CollectorSettings
from stabilizer.web import server

logger = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS: Final = 75
"""Longer than any pause of an agent between two requests, so that it keeps its connection."""


def create_app(
    settings: CollectorSettings, clock: Clock, services: Services | None = None
) -> FastAPI:
    """Build the collector.

    Args:
        settings: Configuration; nothing else is read from the environment.
        clock: Source of time.
        services: Given by tests. Otherwise they are built here, with the database upgraded, and
            closed with the app.

    Raises:
        ConfigurationError: The settings or the rules are invalid.
        StorageError: The database cannot be opened, or another collector holds it.
    """
    owns_services = services is None
    services = services or build_services(settings, clock)
    metrics = Metrics(clock, services.feed)
    app = FastAPI(
        title="Stabilizer",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=operation_id,
        lifespan=_lifespan_of(owns_services),
    )
    app.state.settings = settings
    app.state.services = services
    app.state.metrics = metrics
    app.state.sweeper = Sweeper(services, settings.sweep_seconds, metrics)
    for group in (
        health,
        runs,
        telemetry,
        series,
        incidents,
        rules,
        commands,
        control,
        events,
    ):
        app.include_router(group.router)
    add_docs_page(app)
    add_error_handlers(app)
    app.add_middleware(ApiGuard, settings=settings)
    app.add_middleware(RequestMetrics, metrics=metrics, clock=clock)  # outermost: counts refusals
    app.openapi = cache(partial(describe, app))  # type: ignore[method-assign]  # as FastAPI says
    return app


def _lifespan_of(owns_services: bool) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services: Services = app.state.services
        services.feed.open()
        try:
            async with app.state.sweeper.running(app.state.settings.shutdown_seconds):
                yield
        finally:
            services.feed.close()
            if owns_services:
                await run_in_threadpool(services.close)

    return lifespan


def run_server(settings: CollectorSettings, clock: Clock, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then end open requests and return.

    Args:
        settings: Configuration of the collector.
        clock: Source of time.
        on_ready: Called once with the URL when the collector accepts requests.

    Raises:
        ConfigurationError: The settings or the rules are invalid, or the address is taken.
        StorageError: The database cannot be opened, or another collector holds it.
    """
    with server.listen(settings.host, settings.port) as listener:
        app = create_app(settings, clock)
        server.run(
            app,
            listener,
            on_ready,
            on_shutdown=app.state.services.feed.close,
            ws="none",
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(settings.shutdown_seconds),
        )
    logger.info("shut down")
