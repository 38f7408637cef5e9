"""Measurements: series, metrics and heatmaps."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import TypeAdapter

from stabilizer.collector.api.bodies import JSON, BoundedRoute
from stabilizer.collector.api.dependencies import RunId, ServicesDep
from stabilizer.collector.api.openapi import PREFIX, problems
from stabilizer.protocol.queries import SeriesData, SeriesInfo, SeriesQuery
from stabilizer.protocol.views import Heatmap, HeatmapQuery, MetricInfo

router = APIRouter(prefix=PREFIX + "/runs/{run_id}", tags=["series"], route_class=BoundedRoute)

_INFOS = TypeAdapter(list[SeriesInfo])
_DATA = TypeAdapter(list[SeriesData])

# Long answers: serialize them here, in a worker thread, instead of in the event loop.


@router.get(
    "/series", summary="List series", response_model=list[SeriesInfo], responses=problems(404)
)
def list_series(run_id: RunId, services: ServicesDep) -> Response:
    """List all series of a run over all its catalogs."""
    return Response(_INFOS.dump_json(services.queries.series(run_id)), media_type=JSON)


@router.get(
    "/series/data",
    summary="Read samples",
    response_model=list[SeriesData],
    responses=problems(404),
)
def read_series(
    run_id: RunId, query: Annotated[SeriesQuery, Query()], services: ServicesDep
) -> Response:
    """Read samples by series and attempt, thinned without losing a spike."""
    return Response(_DATA.dump_json(services.queries.read(run_id, query)), media_type=JSON)


@router.get("/metrics", summary="List metrics", responses=problems(404))
def list_metrics(run_id: RunId, services: ServicesDep) -> list[MetricInfo]:
    """List the metrics of a run with the kinds, towers and heads to filter by."""
    return services.heatmaps.metrics(run_id)


@router.get("/heatmap", summary="Read a heatmap", response_model=Heatmap, responses=problems(404))
def read_heatmap(
    run_id: RunId, query: Annotated[HeatmapQuery, Query()], services: ServicesDep
) -> Response:
    """Read a metric of all modules as one map, bottom of the model first, over shared steps.

    Without an attempt it shows the live lineage, without what rollbacks abandoned.
    """
    return Response(services.heatmaps.heatmap(run_id, query).model_dump_json(), media_type=JSON)
