"""Reports of jobs: catalogs, frames, heartbeats. Frames are the hot path of the collector."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError

from stabilizer.collector.api.bodies import JSON, BoundedRoute, check_content_type, parse_message
from stabilizer.collector.api.dependencies import MetricsDep, RunId, ServicesDep
from stabilizer.collector.api.metrics import Metrics, count_points
from stabilizer.collector.api.openapi import PREFIX, json_body, problems
from stabilizer.collector.api.problems import HttpProblem
from stabilizer.collector.services.container import Services
from stabilizer.errors import InvalidInputError, StabilizerError
from stabilizer.protocol.batches import BatchAnswer, JsonBatch
from stabilizer.protocol.frames import CONTENT_TYPE, decode_batch
from stabilizer.protocol.runs import CatalogsAdd, Heartbeat

router = APIRouter(prefix=PREFIX + "/runs/{run_id}", tags=["telemetry"], route_class=BoundedRoute)

_Accept: TypeAlias = Callable[[Services, str, bytes], tuple[BatchAnswer, int, int]]

_FRAMES_BODY = json_body(JsonBatch)
_FRAMES_BODY["requestBody"]["content"][CONTENT_TYPE] = {
    "schema": {"type": "string", "format": "binary"}
}


@router.post(
    "/catalogs",
    summary="Add catalogs",
    responses=problems(400, 404, 409, 413, 415),
    openapi_extra=json_body(CatalogsAdd),
)
async def add_catalogs(request: Request, run_id: RunId, services: ServicesDep) -> list[str]:
    """Register series before their frames are sent; returns the catalogs' ids."""
    check_content_type(request, JSON)
    body = await request.body()
    return await run_in_threadpool(
        lambda: list(services.runs.add_catalogs(run_id, parse_message(body, CatalogsAdd)))
    )


@router.post(
    "/frames",
    summary="Report frames",
    response_model=BatchAnswer,
    responses=problems(400, 404, 409, 413, 415),
    openapi_extra=_FRAMES_BODY,
)
async def post_frames(
    request: Request, run_id: RunId, services: ServicesDep, metrics: MetricsDep
) -> Response:
    """Store a batch of frames, evaluate the rules, and return commands and the sampling plan.

    The batch is durable before the response is sent. A repeated (attempt, sequence) is a duplicate
    and is not stored again.
    """
    kind = check_content_type(request, CONTENT_TYPE, JSON)
    body = await request.body()
    accept = _accept_json if kind == JSON else _accept_binary
    return await run_in_threadpool(_count, accept, services, metrics, run_id, body)


@router.post("/heartbeat", summary="Send a heartbeat", responses=problems(400, 404, 409, 413, 415))
def post_heartbeat(run_id: RunId, heartbeat: Heartbeat, services: ServicesDep) -> BatchAnswer:
    """Report that the job is alive, or that it has paused, finished or failed."""
    return services.runs.heartbeat(run_id, heartbeat)


def _count(
    accept: _Accept, services: Services, metrics: Metrics, run_id: str, body: bytes
) -> Response:
    try:
        answer, frames, points = accept(services, run_id, body)
    except (StabilizerError, HttpProblem) as error:
        metrics.refused(error.code)
        raise
    except RequestValidationError:
        metrics.refused(InvalidInputError.code)
        raise
    metrics.stored(answer, frames, points)
    return Response(answer.model_dump_json(), media_type=JSON)


def _accept_binary(services: Services, run_id: str, body: bytes) -> tuple[BatchAnswer, int, int]:
    batch = decode_batch(body)
    return services.ingest.accept(run_id, batch), *count_points(batch)


def _accept_json(services: Services, run_id: str, body: bytes) -> tuple[BatchAnswer, int, int]:
    batch = parse_message(body, JsonBatch)
    points = sum(len(frame.values) for frame in batch.frames)
    return services.ingest.accept_json(run_id, batch), len(batch.frames), points
