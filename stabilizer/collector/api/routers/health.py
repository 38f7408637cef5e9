"""For probes and scrapers; open without a token."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict

from stabilizer.collector.api.dependencies import MetricsDep, ServicesDep, SweeperDep
from stabilizer.collector.api.metrics import CONTENT_TYPE
from stabilizer.collector.api.openapi import problems
from stabilizer.errors import StorageError

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """A sign of life."""

    model_config = ConfigDict(frozen=True)

    status: Literal["ok"] = "ok"


@router.get("/healthz", summary="Is the process alive?", responses=problems())
async def healthz() -> Health:
    """Answer from the event loop alone: this fails only if the process hangs."""
    return Health()


@router.get("/readyz", summary="Can it work?", responses=problems())
def readyz(services: ServicesDep, sweeper: SweeperDep) -> Health:
    """Ask the database for a sign of life and for the schema of this version."""
    services.ready()
    if not sweeper.is_running:
        raise StorageError("nobody looks for lost runs and expired commands", code="not_sweeping")
    return Health()


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
    responses=problems(),
)
def metrics(metrics: MetricsDep, services: ServicesDep) -> Response:
    """Show counters of this process and the state of all runs, in Prometheus' text format."""
    return Response(metrics.exposition(services.overview.counts), media_type=CONTENT_TYPE)
