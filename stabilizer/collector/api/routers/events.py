"""Changes of runs as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import Field

from stabilizer.collector.api.bodies import BoundedRoute
from stabilizer.collector.api.dependencies import ServicesDep
from stabilizer.collector.api.openapi import PREFIX, problems
from stabilizer.collector.services.change_feed import Audience, ChangeFeed
from stabilizer.protocol.message import Message
from stabilizer.protocol.views import CHANGE_EVENT, HELLO_EVENT, ChangeEvent, HelloEvent

router = APIRouter(prefix=PREFIX, tags=["events"], route_class=BoundedRoute)

HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""No proxy may cache or buffer events."""
PACE_SECONDS: Final = 0.1
"""Shortest interval between two events of a stream."""
HEARTBEAT_SECONDS: Final = 10.0
"""Longest interval without a line; keeps the connection open through proxies."""
HEARTBEAT: Final = format_sse_event(comment="alive")

_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "An endless stream of server-sent events.",
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


class EventQuery(Message):
    """Which changes to follow."""

    run_id: Annotated[str | None, Field(max_length=64)] = None
    """Follow this run only; the global switch and silences are always included."""


@router.get(
    "/events",
    summary="Follow changes",
    response_class=StreamingResponse,
    responses=_STREAM | problems(404),
)
async def stream_events(
    query: Annotated[EventQuery, Query()], services: ServicesDep
) -> EventSourceResponse:
    """Notify pages of changes, so that they reload what they show.

    Starts with `hello`. Each run is reported at most ten times a second; nothing is lost, since an
    event covers all changes before it. Without changes a comment is sent every ten seconds. A new
    `start_id` means that the collector was restarted: reload everything.
    """
    if query.run_id is not None:
        await run_in_threadpool(services.runs.get, query.run_id)
    return EventSourceResponse(follow(services.feed, query.run_id), headers=HEADERS)


async def follow(
    feed: ChangeFeed,
    run_id: str | None,
    *,
    pace_seconds: float = PACE_SECONDS,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
) -> AsyncIterator[bytes]:
    """Stream changes from now on until the server stops.

    Args:
        feed: Source of changes.
        run_id: Only this run and what concerns all runs; None for everything.
        pace_seconds: Shortest interval between two reads of the feed.
        heartbeat_seconds: Longest interval without a line.

    Yields:
        Encoded events: a hello, then changes, with comments while nothing changes.
    """
    with feed.listening(Audience.PAGE, run_id) as listener:
        cursor = feed.cursor()
        hello = HelloEvent(start_id=feed.start_id)
        yield format_sse_event(event=HELLO_EVENT, data_str=hello.model_dump_json())
        while not feed.is_closing:
            cursor, events = feed.since(cursor, run_id)
            if events:
                yield b"".join(map(_encode, events))
                await feed.pause(pace_seconds)
            elif not await listener.wait(heartbeat_seconds):
                yield HEARTBEAT


def _encode(event: ChangeEvent) -> bytes:
    return format_sse_event(event=CHANGE_EVENT, data_str=event.model_dump_json())
