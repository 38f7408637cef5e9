"""Health probes and metrics; they need no token."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from stabilizer.collector.api.dependencies import MetricsDep, ServicesDep, SweeperDep
from stabilizer.collector.api.metrics import CONTENT_TYPE
from stabilizer.collector.api.openapi import problems
from stabilizer.errors import StorageError
from stabilizer.protocol.message import Message

router = APIRouter(tags=["health"])


class Health(Message):
    """Response of a passing probe."""

    status: Literal["ok"] = "ok"
    """Always `ok`."""


@router.get("/healthz", summary="Is the process alive?", responses=problems())
async def healthz() -> Health:
    """Respond from the event loop: fails only if the process hangs."""
    return Health()


@router.get("/readyz", summary="Is the collector ready?", responses=problems())
def readyz(services: ServicesDep, sweeper: SweeperDep) -> Health:
    """Check the database, its schema and the sweeper."""
    services.ready()
    if not sweeper.is_running:
        raise StorageError("the sweeper is not running", code="not_sweeping")
    return Health()


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
    responses=problems(),
)
def metrics(metrics: MetricsDep, services: ServicesDep) -> Response:
    """Export counters of this process and the state of all runs in Prometheus text format."""
    return Response(metrics.exposition(services.overview.counts), media_type=CONTENT_TYPE)
