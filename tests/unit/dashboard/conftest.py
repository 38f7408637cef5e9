"""A clock that stands still, a browser, and the collector's end of a stream of events."""

import asyncio
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from dashboard.client import Collector, LiveHub
from tests.browser import launched

WAIT_SECONDS = 20


class ManualClock:
    """Stands still until told to go on."""

    def __init__(self):
        self.at = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def now(self):
        return self.at

    def monotonic(self):
        return self.at.timestamp()

    def advance(self, seconds):
        self.at += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture(scope="module")
def browser():
    """Open for the tests of one file: those of another may run event loops."""
    with launched() as browser:
        yield browser


class Stream(httpx.AsyncByteStream):
    """The body of one answer: what the test says, until it ends or breaks it off."""

    def __init__(self):
        self.parts = asyncio.Queue()
        self.closed = asyncio.Event()

    def say(self, *texts):
        for text in texts:
            self.parts.put_nowait(text)

    def end(self, error=None):
        self.parts.put_nowait(error)

    async def __aiter__(self):
        while True:
            part = await self.parts.get()
            if part is None:
                return
            if isinstance(part, Exception):
                raise part
            yield part.encode()

    async def aclose(self):
        self.closed.set()


class Wire(httpx.AsyncBaseTransport):
    """A collector's end of every stream: each request waits until the test answers it."""

    def __init__(self):
        self.requests = asyncio.Queue()

    async def handle_async_request(self, request):
        answer = asyncio.get_running_loop().create_future()
        await self.requests.put((request, answer))
        return await answer

    async def accept(self, *texts):
        """Answer the next request with a stream; returns the request and the stream."""
        request, answer = await self.requests.get()
        stream = Stream()
        stream.say(*texts)
        headers = {"content-type": "text/event-stream; charset=utf-8"}
        answer.set_result(httpx.Response(200, headers=headers, stream=stream))
        return request, stream

    async def refuse(self, response):
        """Answer the next request with something else, or with an error."""
        _, answer = await self.requests.get()
        if isinstance(response, Exception):
            answer.set_exception(response)
        else:
            answer.set_result(response)


class Pauses:
    """Waits for the test instead of the time; remembers for how long it should have waited."""

    def __init__(self):
        self.seconds = []
        self.begun = asyncio.Queue()

    async def __call__(self, seconds):
        self.seconds.append(seconds)
        over = asyncio.Event()
        self.begun.put_nowait(over)
        await over.wait()

    async def end(self):
        (await self.begun.get()).set()


class Stage:
    """A hub with its collector, in one event loop."""

    def __init__(self, clock):
        self.clock = clock
        self.wire = Wire()
        self.pauses = Pauses()
        self.collector = Collector("http://collector", transport=self.wire)
        self.hub = LiveHub(self.collector, clock, self.pauses)

    async def news(self, listener, run_id=None, *, until):
        """Wait until the news are as asked for; return them."""
        found = listener.news(run_id)
        async with asyncio.timeout(WAIT_SECONDS):
            while not until(found):
                found = await listener.wait(run_id, found, WAIT_SECONDS)
        return found

    async def linked(self, listener, link):
        return await self.news(listener, until=lambda news: news.link is link)


@pytest.fixture
def play(clock):
    """Run a scenario on a stage, and see that nothing is left behind."""

    def run(scenario):
        async def whole():
            stage = Stage(clock)
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    return await scenario(stage)
            finally:
                await stage.hub.close()
                await stage.collector.close()
                assert asyncio.all_tasks() == {asyncio.current_task()}

        return asyncio.run(whole())

    return run
