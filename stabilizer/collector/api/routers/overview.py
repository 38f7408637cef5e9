"""All runs at a glance."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from stabilizer.collector.api.bodies import JSON, BoundedRoute
from stabilizer.collector.api.dependencies import ServicesDep
from stabilizer.collector.api.openapi import PREFIX, problems
from stabilizer.protocol.queries import RunQuery
from stabilizer.protocol.views import Overview

router = APIRouter(prefix=PREFIX, tags=["runs"], route_class=BoundedRoute)


@router.get(
    "/overview", summary="Show runs at a glance", response_model=Overview, responses=problems()
)
def get_overview(query: Annotated[RunQuery, Query()], services: ServicesDep) -> Response:
    """List runs page by page, each with its phase, open incident, last intervention and loss.

    A sparkline is missing while the collector reads the history of a run for the first time.
    """
    return Response(services.overview.rows(query).model_dump_json(), media_type=JSON)
