"""The collector as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache, partial
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

from stabilizer.clock import Clock
from stabilizer.collector.api.access import AccessGuard
from stabilizer.collector.api.error_handlers import add_error_handlers
from stabilizer.collector.api.metrics import Metrics, RequestMetrics
from stabilizer.collector.api.openapi import describe, operation_id
from stabilizer.collector.api.routers import (
    commands,
    control,
    events,
    health,
    incidents,
    overview,
    runs,
    series,
    telemetry,
)
from stabilizer.collector.api.sweeper import Sweeper
from stabilizer.collector.services.container import Services, build_services
from stabilizer.settings import CollectorSettings


def create_app(
    settings: CollectorSettings, clock: Clock, services: Services | None = None
) -> FastAPI:
    """Build the collector.

    Args:
        settings: Surroundings; nothing else is read from the environment.
        clock: Source of time.
        services: Given by tests; otherwise built here, with the database brought up to date, and
            closed when the app ends.

    Raises:
        ConfigurationError: The settings or the rules cannot be used.
        StorageError: The database cannot be opened, or another collector holds it.
    """
    owns_services = services is None
    services = services or build_services(settings, clock)
    metrics = Metrics(clock, services.feed)
    app = FastAPI(
        title="Stabilizer",
        version=version("stabilizer"),
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        generate_unique_id_function=operation_id,
        lifespan=_lifespan_of(owns_services),
    )
    app.state.settings = settings
    app.state.services = services
    app.state.metrics = metrics
    app.state.sweeper = Sweeper(services, settings.sweep_seconds, metrics)
    for group in (
        health,
        overview,
        runs,
        telemetry,
        series,
        incidents,
        commands,
        control,
        events,
    ):
        app.include_router(group.router)
    add_error_handlers(app)
    app.add_middleware(AccessGuard, settings=settings)
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
