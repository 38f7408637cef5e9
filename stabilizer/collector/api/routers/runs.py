"""Training jobs: register, look up, change, remove."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError

from stabilizer.collector.api.bodies import (
    JSON,
    BoundedRoute,
    check_content_type,
    parse_json,
    parse_message,
)
from stabilizer.collector.api.dependencies import Actor, RunId, ServicesDep
from stabilizer.collector.api.openapi import PREFIX, json_body, problems
from stabilizer.collector.services.runs.registration import check_version
from stabilizer.protocol.queries import Note, RunPage, RunQuery
from stabilizer.protocol.runs import Run, RunRegister, RunRegistered, RunUpdate
from stabilizer.protocol.views import MarkerInfo, Overview, SnapshotState

router = APIRouter(prefix=PREFIX, tags=["runs"], route_class=BoundedRoute)


@router.post(
    "/runs",
    status_code=201,
    summary="Register a job",
    response_model=RunRegistered,
    responses=problems(400, 409, 413, 415, 426),
    openapi_extra=json_body(RunRegister),
)
async def register_run(request: Request, services: ServicesDep) -> RunRegistered:
    """Start a run, or the next attempt of the run with the same name and key."""
    check_content_type(request, JSON)
    body = await request.body()
    # In a worker thread, since parsing catalogs of many thousand series takes long.
    return await run_in_threadpool(lambda: services.runs.register(_read_registration(body)))


@router.get("/runs", summary="List runs", responses=problems())
def list_runs(query: Annotated[RunQuery, Query()], services: ServicesDep) -> RunPage:
    """List runs page by page, without their attempts."""
    return services.runs.list(query)


@router.get(
    "/overview", summary="List runs with summaries", response_model=Overview, responses=problems()
)
def get_overview(query: Annotated[RunQuery, Query()], services: ServicesDep) -> Response:
    """List runs page by page, each with its phase, open incident, last intervention and loss.

    A sparkline is missing until the collector has read the history of its run once.
    """
    return Response(services.overview.rows(query).model_dump_json(), media_type=JSON)


@router.get("/runs/{run_id}", summary="Show a run", responses=problems(404))
def get_run(run_id: RunId, services: ServicesDep) -> Run:
    """Show a run with all its attempts."""
    return services.runs.get(run_id)


@router.get("/runs/{run_id}/snapshots", summary="List snapshots", responses=problems(404))
def list_snapshots(run_id: RunId, services: ServicesDep) -> list[SnapshotState]:
    """List the snapshots that the job holds, newest first, and whether they are healthy."""
    return services.queries.snapshots(run_id)


@router.get("/runs/{run_id}/markers", summary="List markers", responses=problems(404))
def list_markers(run_id: RunId, services: ServicesDep) -> list[MarkerInfo]:
    """List the events that the job reported, oldest first: phases, resumes, rate changes."""
    return services.queries.markers(run_id)


@router.patch("/runs/{run_id}", summary="Change a run", responses=problems(400, 404, 409, 413, 415))
def update_run(run_id: RunId, update: RunUpdate, actor: Actor, services: ServicesDep) -> Run:
    """Change how far the policy may go on this run."""
    return services.runs.update(run_id, update, actor)


@router.delete(
    "/runs/{run_id}", status_code=204, summary="Remove a run", responses=problems(404, 409)
)
def delete_run(
    run_id: RunId, note: Annotated[Note, Query()], actor: Actor, services: ServicesDep
) -> Response:
    """Remove a run and its measurements; the audit log keeps its entries."""
    services.runs.delete(run_id, actor, note.reason)
    return Response(status_code=204)


def _read_registration(body: bytes) -> RunRegister:
    try:
        return parse_message(body, RunRegister)
    except RequestValidationError:
        # A job of another protocol version sends unknown fields: report the version, not them.
        document = parse_json(body)
        version = document.get("protocol_version") if isinstance(document, dict) else None
        if isinstance(version, int):
            check_version(version)
        raise
