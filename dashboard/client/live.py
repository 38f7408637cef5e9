"""News from the collector: one stream of events for each token, however many pages listen.

A page learns that something has changed and asks for what it shows. So an event that is told
twice, or told as one with another, costs a request and no truth; one that was missed while the
stream was down is made good by counting everything as changed when it is up again.
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

_SILENCE_SECONDS: Final = 25.0
"""The collector gives a sign of life every 10 seconds: after two of them it is gone."""
_FIRST_RETRY_SECONDS: Final = 0.25
_LAST_RETRY_SECONDS: Final = 5.0


class Link(StrEnum):
    """How the dashboard stands to the collector."""

    CONNECTING = "connecting"
    LIVE = "live"
    AWAY = "away"
    REFUSED = "refused"
    """It is there, and does not take the token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class News:
    """Counts of changes: a page looks at what has another count than before."""

    link: Link
    since: datetime
    """When the link became what it is."""
    frames: int = 0
    """Of the run that the page shows, or of all runs."""
    decisions: int = 0
    control: int = 0
    """Of the switch over all runs, and of silences."""
    step: int = 0
    """Where the run stands, as far as it has been told; 0 for all runs together."""


@dataclass(slots=True)
class _Counts:
    frames: int = 0
    decisions: int = 0
    step: int = 0


@dataclass(slots=True)
class _Channel:
    """What is known in the name of one token."""

    link: Link
    since: datetime
    task: asyncio.Task[None] | None = None
    listeners: int = 0
    everything: int = 0
    """Grows when anything may have changed unseen."""
    control: int = 0
    all_runs: _Counts = field(default_factory=_Counts)
    runs: dict[str, _Counts] = field(default_factory=dict)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class LiveHub:
    """Listens to the collector while any page does. Lives in one event loop.

    Args:
        collector: Whose news.
        clock: Dates the moment at which the collector went away or came back.
        pause: Waits a number of seconds; for tests.
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
        """Listen in the name of a person; the stream is opened for the first and shared."""
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
        """Keep the stream open until cancelled, whatever happens at the other end."""
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
                retry = _FIRST_RETRY_SECONDS  # not after a mere hello: it may break off each time
            await self._pause(retry)
            retry = min(2 * retry, _LAST_RETRY_SECONDS)

    async def _events(self, visitor: Visitor) -> AsyncIterator[httpx_sse.ServerSentEvent]:
        timeout = httpx.Timeout(self._collector.http.timeout.connect, read=_SILENCE_SECONDS)
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
    """One page's ear."""

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel

    def news(self, run_id: str | None) -> News:
        """Return the counts of a run, or those of all runs together."""
        channel = self._channel
        counts = channel.all_runs if run_id is None else channel.runs.get(run_id, _Counts())
        return News(
            link=channel.link,
            since=channel.since,
            frames=channel.everything + counts.frames,
            decisions=channel.everything + counts.decisions,
            control=channel.everything + channel.control,
            step=0 if run_id is None else counts.step,
        )

    async def wait(self, run_id: str | None, known: News, timeout_seconds: float) -> News:
        """Wait until the news are other than known, or the time is over; return them then."""
        channel = self._channel
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds), channel.changed:
                await channel.changed.wait_for(lambda: self.news(run_id) != known)
        return self.news(run_id)


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
