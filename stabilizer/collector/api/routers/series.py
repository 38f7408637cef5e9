"""What was measured."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import TypeAdapter

from stabilizer.collector.api.bodies import JSON, BoundedRoute
from stabilizer.collector.api.dependencies import RunId, ServicesDep
from stabilizer.collector.api.openapi import PREFIX, problems
from stabilizer.protocol.queries import SeriesData, SeriesInfo, SeriesQuery

router = APIRouter(
    prefix=PREFIX + "/runs/{run_id}/series", tags=["series"], route_class=BoundedRoute
)

_INFOS = TypeAdapter(list[SeriesInfo])
_DATA = TypeAdapter(list[SeriesData])

# Both answers can be long: they are written here, in a worker thread, and not in the event loop.


@router.get("", summary="List series", response_model=list[SeriesInfo], responses=problems(404))
def list_series(run_id: RunId, services: ServicesDep) -> Response:
    """List all series of a run, over all its catalogs."""
    return Response(_INFOS.dump_json(services.queries.series(run_id)), media_type=JSON)


@router.get(
    "/data", summary="Read samples", response_model=list[SeriesData], responses=problems(404)
)
def read_series(
    run_id: RunId, query: Annotated[SeriesQuery, Query()], services: ServicesDep
) -> Response:
    """Read samples of series, each attempt on its own, thinned without losing a spike."""
    return Response(_DATA.dump_json(services.queries.read(run_id, query)), media_type=JSON)
