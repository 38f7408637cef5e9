"""What pages follow: changes, as they happen."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel, ConfigDict, Field

from stabilizer.collector.api.bodies import BoundedRoute
from stabilizer.collector.api.dependencies import EventStreamsDep, ServicesDep
from stabilizer.collector.api.openapi import PREFIX, problems
from stabilizer.protocol.views import ChangeEvent, HelloEvent

router = APIRouter(prefix=PREFIX, tags=["events"], route_class=BoundedRoute)

HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Nobody on the way may keep events back."""

_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "A stream of server-sent events that does not end by itself.",
        "content": {
            "text/event-stream": {
                "schema": {
                    "type": "string",
                    "description": "`hello` with a HelloEvent, then `change` with a ChangeEvent.",
                },
                "x-events": {
                    "hello": {"$ref": f"#/components/schemas/{HelloEvent.__name__}"},
                    "change": {"$ref": f"#/components/schemas/{ChangeEvent.__name__}"},
                },
            }
        },
    }
}


class EventQuery(BaseModel):
    """What to follow."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: Annotated[str | None, Field(max_length=64)] = None
    """Follow this run only; the switch over all runs and silences are always told."""


@router.get(
    "/events",
    summary="Follow changes",
    response_class=StreamingResponse,
    responses=_STREAM | problems(404),
)
async def stream_events(
    query: Annotated[EventQuery, Query()], services: ServicesDep, streams: EventStreamsDep
) -> EventSourceResponse:
    """Tell within a moment that something has changed, for a page to ask for it again.

    Begins with `hello`. Each run is told of at most ten times a second; nothing is lost by that,
    since the last event tells of all changes before it. Silence is broken by a comment every ten
    seconds. Another `start_id` than before means that the collector has started anew: then a page
    reads everything again.
    """
    if query.run_id is not None:
        await run_in_threadpool(services.runs.get, query.run_id)
    return EventSourceResponse(streams.follow(query.run_id), headers=HEADERS)
