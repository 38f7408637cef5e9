"""Commands to jobs, by the policy or by a user."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Final, TypeVar

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import Field

from stabilizer.collector.api.bodies import JSON, BoundedRoute
from stabilizer.collector.api.dependencies import (
    Actor,
    CommandId,
    RunId,
    ServicesDep,
)
from stabilizer.collector.api.openapi import PREFIX, problems
from stabilizer.collector.services.change_feed import Audience, ChangeFeed, ChangeListener
from stabilizer.errors import InvalidInputError
from stabilizer.protocol.batches import BatchAnswer, NamesAttempt
from stabilizer.protocol.commands import Command, CommandResult, CommandState
from stabilizer.protocol.message import Message
from stabilizer.protocol.queries import CommandCreate, Note
from stabilizer.protocol.views import CommandPreview, CommandPreviewRequest

MAX_WAIT_SECONDS: Final = 60.0
CLIENT_CLOSED_REQUEST: Final = 499
"""Status of a request whose client has disconnected; only metrics show it."""
Answer = TypeVar("Answer")

router = APIRouter(prefix=PREFIX, tags=["commands"], route_class=BoundedRoute)


class CommandQuery(Message):
    """Which commands to list."""

    states: tuple[CommandState, ...] = ()
    """Empty: all states."""


class NextQuery(NamesAttempt):
    """For which commands to wait, and how long; names the attempt that the job is in."""

    wait: Annotated[float, Field(ge=0, le=MAX_WAIT_SECONDS)] = 0.0
    """Seconds to wait; 0 responds at once."""
    known: Annotated[tuple[str, ...] | None, Field(max_length=100)] = None
    """Ids of the unsettled commands that the job has received. If given, a command that was lost
    on the way is delivered again at once."""


@router.post(
    "/runs/{run_id}/commands",
    status_code=201,
    summary="Create a command",
    responses=problems(400, 404, 409, 413, 415),
)
def create_command(
    run_id: RunId, command: CommandCreate, actor: Actor, services: ServicesDep
) -> Command:
    """Store a command; the job receives it with its next report or long poll."""
    return services.commands.create(run_id, command, actor)


@router.post(
    "/runs/{run_id}/commands/preview",
    summary="Preview a command",
    responses=problems(400, 404, 409, 413, 415),
)
def preview_command(
    run_id: RunId, request: CommandPreviewRequest, services: ServicesDep
) -> CommandPreview:
    """Show the effects of a command and warnings against it; nothing is stored.

    Refuses with the same codes as the command itself.
    """
    return services.previews.preview(run_id, request)


@router.get("/runs/{run_id}/commands", summary="List commands of a run", responses=problems(404))
def list_commands(
    run_id: RunId, query: Annotated[CommandQuery, Query()], services: ServicesDep
) -> list[Command]:
    """List the commands of a run with their results, oldest first."""
    return services.commands.list(run_id, query.states)


@router.get(
    "/runs/{run_id}/commands/next",
    summary="Wait for commands",
    response_model=BatchAnswer,
    responses=problems(404, 409),
)
async def next_commands(
    request: Request,
    run_id: RunId,
    query: Annotated[NextQuery, Query()],
    services: ServicesDep,
) -> Response:
    """Respond once there is a command that the job has not received, or after `wait` seconds.

    For paused jobs, which send no frames. The response holds all unsettled commands.
    """
    known: Collection[str] | None = query.known

    def poll() -> tuple[BatchAnswer, bool]:
        nonlocal known
        if known is None:  # read once, before `poll` delivers more: those are news
            delivered = services.commands.list(run_id, {CommandState.DELIVERED})
            known = {command.id for command in delivered}
        had = known
        answer = services.commands.poll(run_id, query.attempt, query.attempt_id)
        return answer, any(command.id not in had for command in answer.commands)

    with services.feed.listening(Audience.JOB, run_id) as listener:
        async with watch_disconnect(request, listener):
            answer = await poll_until_news(poll, listener, services.feed, query.wait)
    if answer is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return Response(answer.model_dump_json(), media_type=JSON)


@router.post(
    "/runs/{run_id}/commands/{command_id}/result",
    summary="Report the result of a command",
    responses=problems(400, 404, 409, 413, 415),
)
def post_result(
    run_id: RunId, command_id: CommandId, result: CommandResult, services: ServicesDep
) -> Command:
    """Report whether a command was applied, with its read-back. Idempotent."""
    if result.command_id != command_id:
        raise InvalidInputError(
            f"command_id is {result.command_id[:64]!r}; allowed: {command_id!r}, as in the path",
            field="command_id",
            value=result.command_id,
            allowed=f"{command_id!r}, as in the path",
        )
    return services.commands.result(run_id, result)


@router.get("/commands/{command_id}", summary="Show a command", responses=problems(404))
def get_command(command_id: CommandId, services: ServicesDep) -> Command:
    """Show a command with its result."""
    return services.commands.get(command_id)


@router.get(
    "/commands/{command_id}/preview",
    summary="Preview a stored command",
    responses=problems(404, 409),
)
def preview_stored_command(command_id: CommandId, services: ServicesDep) -> CommandPreview:
    """Show the effects of an unsettled command if the job applied it now."""
    return services.previews.of_command(command_id)


@router.post(
    "/commands/{command_id}/approve",
    summary="Approve a proposed command",
    responses=problems(400, 404, 409, 413, 415),
)
def approve_command(
    command_id: CommandId, note: Note, actor: Actor, services: ServicesDep
) -> Command:
    """Release a proposed command to the job."""
    return services.commands.approve(command_id, note, actor)


@router.post(
    "/commands/{command_id}/reject",
    summary="Reject a proposed command",
    responses=problems(400, 404, 409, 413, 415),
)
def reject_command(
    command_id: CommandId, note: Note, actor: Actor, services: ServicesDep
) -> Command:
    """Reject a proposed command; it is never sent."""
    return services.commands.reject(command_id, note, actor)


@router.post(
    "/commands/{command_id}/cancel",
    summary="Cancel a command",
    responses=problems(400, 404, 409, 413, 415),
)
def cancel_command(
    command_id: CommandId, note: Note, actor: Actor, services: ServicesDep
) -> Command:
    """Cancel an unsettled command."""
    return services.commands.cancel(command_id, note, actor)


async def poll_until_news(
    poll: Callable[[], tuple[Answer, bool]],
    listener: ChangeListener,
    feed: ChangeFeed,
    wait_seconds: float,
) -> Answer | None:
    """Poll at every wake-up until there is news, the time is up or the server stops.

    Args:
        poll: Returns the current answer and whether it is news. Runs in a worker thread and is
            never cancelled half way, since it marks commands as delivered.
        listener: Registered before the first poll.
        feed: Knows when the server stops.
        wait_seconds: 0 polls once.

    Returns:
        The answer, or None if the client has disconnected: then nothing is delivered.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_seconds
    while True:
        answer, is_news = await run_in_threadpool(poll)
        remaining = deadline - loop.time()
        if is_news or feed.is_closing or remaining <= 0:
            return answer
        # Poll after a timeout as well: another collector may have changed the run.
        await listener.wait(remaining)
        if listener.is_gone:
            return None


@asynccontextmanager
async def watch_disconnect(request: Request, listener: ChangeListener) -> AsyncIterator[None]:
    """End the wait when the client disconnects: do not deliver commands to a dead client."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        listener.leave()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
