"""Live updates from the collector: one event stream per token, shared by all pages.

A page only learns that something has changed, then requests what it shows. So duplicate or merged
events are harmless. After a lost stream has been reopened, everything counts as changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

import httpx
import httpx_sse
from pydantic import ValidationError

from dashboard.client.collector import Collector
from dashboard.client.http import PREFIX, headers_of, refusal
from dashboard.errors import CollectorUnavailableError, DashboardError, SignInRequiredError
from dashboard.visitor import Visitor
from stabilizer.clock import Clock
from stabilizer.protocol.views import CHANGE_EVENT, HELLO_EVENT, ChangeEvent

logger = logging.getLogger(__name__)

_READ_TIMEOUT_SECONDS: Final = 25.0
"""The collector sends a heartbeat every 10 seconds; two missed ones end the stream."""
_FIRST_RETRY_SECONDS: Final = 0.25
_LAST_RETRY_SECONDS: Final = 5.0


class Link(StrEnum):
    """State of the connection to the collector."""

    CONNECTING = "connecting"
    LIVE = "live"
    AWAY = "away"
    REFUSED = "refused"
    """It responds, but rejects the token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Updates:
    """Counts of changes; a page refreshes what has a new count."""

    link: Link
    since: datetime
    """When the link entered this state."""
    frames: int = 0
    """Of the run shown, or of all runs."""
    decisions: int = 0
    control: int = 0
    """Of the global control state and of silences."""
    step: int = 0
    """Newest step of the run; 0 for all runs together."""


@dataclass(slots=True)
class _Counts:
    frames: int = 0
    decisions: int = 0
    step: int = 0


@dataclass(slots=True)
class _Channel:
    """State of the stream of one token."""

    link: Link
    since: datetime
    task: asyncio.Task[None] | None = None
    listeners: int = 0
    everything: int = 0
    """Grows when events may have been missed."""
    control: int = 0
    all_runs: _Counts = field(default_factory=_Counts)
    runs: dict[str, _Counts] = field(default_factory=dict)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class LiveHub:
    """Subscribes to the collector while any page listens. Belongs to one event loop.

    Args:
        collector: The collector.
        clock: Source of time.
        pause: Sleeps for a number of seconds; for tests.
    """

    def __init__(
        self,
        collector: Collector,
        clock: Clock,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._collector = collector
        self._clock = clock
        self._pause = pause
        self._channels: dict[str, _Channel] = {}

    @contextlib.asynccontextmanager
    async def listening(self, visitor: Visitor) -> AsyncIterator[Listener]:
        """Subscribe as a user. Users of the same token share a stream."""
        key = "" if visitor.token is None else visitor.token.get_secret_value()
        channel = self._channels.get(key)
        if channel is None:
            channel = _Channel(link=Link.CONNECTING, since=self._clock.now())
            self._channels[key] = channel
            channel.task = asyncio.create_task(self._follow(channel, visitor))
        channel.listeners += 1
        try:
            yield Listener(channel)
        finally:
            channel.listeners -= 1
            if not channel.listeners:
                self._channels.pop(key, None)
                await _end(channel.task)

    async def close(self) -> None:
        """End all streams."""
        channels = list(self._channels.values())
        self._channels.clear()
        for channel in channels:
            await _end(channel.task)

    async def _follow(self, channel: _Channel, visitor: Visitor) -> None:
        """Keep the stream open until cancelled; reconnect after any failure."""
        retry = _FIRST_RETRY_SECONDS
        while True:
            began = self._clock.monotonic()
            try:
                async for event in self._events(visitor):
                    await self._take(channel, event)
                reason = "the stream ended"
            except (DashboardError, httpx.HTTPError, httpx_sse.SSEError) as error:
                reason = str(error) or type(error).__name__
                refused = isinstance(error, SignInRequiredError)
                link = Link.REFUSED if refused else Link.AWAY
                await self._move(channel, link, reason)
            else:
                await self._move(channel, Link.AWAY, reason)
            if self._clock.monotonic() - began > _LAST_RETRY_SECONDS:
                retry = (
                    _FIRST_RETRY_SECONDS  # only after a lasting connection, not after a hello alone
                )
            await self._pause(retry)
            retry = min(2 * retry, _LAST_RETRY_SECONDS)

    async def _events(self, visitor: Visitor) -> AsyncIterator[httpx_sse.ServerSentEvent]:
        timeout = httpx.Timeout(self._collector.http.timeout.connect, read=_READ_TIMEOUT_SECONDS)
        async with httpx_sse.aconnect_sse(
            self._collector.http,
            "GET",
            f"{PREFIX}/events",
            headers=headers_of(visitor),
            timeout=timeout,
        ) as source:
            if not source.response.is_success:
                await source.response.aread()
                raise refusal(source.response)
            async for event in source.aiter_sse():
                yield event

    async def _take(self, channel: _Channel, event: httpx_sse.ServerSentEvent) -> None:
        if event.event == HELLO_EVENT:
            async with channel.changed:
                channel.everything += 1
            await self._move(channel, Link.LIVE, "")
        elif event.event == CHANGE_EVENT:
            try:
                change = ChangeEvent.model_validate_json(event.data)
            except ValidationError as error:
                raise CollectorUnavailableError(
                    "unexpected event: collector and dashboard must have the same version",
                    url=self._collector.url,
                ) from error
            async with channel.changed:
                _count(channel, change)
                channel.changed.notify_all()

    async def _move(self, channel: _Channel, link: Link, reason: str) -> None:
        async with channel.changed:
            if channel.link is not link:
                if reason:
                    logger.warning("the collector at %s: %s", self._collector.url, reason)
                channel.link, channel.since = link, self._clock.now()
            channel.changed.notify_all()


class Listener:
    """Subscription of one page."""

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel

    def updates(self, run_id: str | None) -> Updates:
        """Return the counts of a run, or those of all runs together."""
        channel = self._channel
        counts = channel.all_runs if run_id is None else channel.runs.get(run_id, _Counts())
        return Updates(
            link=channel.link,
            since=channel.since,
            frames=channel.everything + counts.frames,
            decisions=channel.everything + counts.decisions,
            control=channel.everything + channel.control,
            step=0 if run_id is None else counts.step,
        )

    async def wait(self, run_id: str | None, known: Updates, timeout_seconds: float) -> Updates:
        """Return the updates once they differ from `known`, or at the timeout."""
        channel = self._channel
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds), channel.changed:
                await channel.changed.wait_for(lambda: self.updates(run_id) != known)
        return self.updates(run_id)


def _count(channel: _Channel, change: ChangeEvent) -> None:
    if change.run_id is None:
        channel.control += 1
        return
    for counts in (channel.all_runs, channel.runs.setdefault(change.run_id, _Counts())):
        counts.frames += change.frames
        counts.decisions += change.decisions
        counts.step = change.step


async def _end(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
