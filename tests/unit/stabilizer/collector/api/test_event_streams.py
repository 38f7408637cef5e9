"""Streams as coroutines: paced, woken from threads, silent, slow, ended."""

import asyncio
import json
from contextlib import aclosing

import pytest

from stabilizer.collector.api.routers.events import HEARTBEAT, follow
from stabilizer.collector.services.change_feed import Audience, Change, ChangeFeed

NEVER = 60.0


class World:
    """A feed and the streams that follow it."""

    def __init__(self, **paces):
        self.feed = ChangeFeed()
        self.feed.open()
        self.paces = {"heartbeat_seconds": NEVER} | paces

    @property
    def num_streams(self):
        return self.feed.num_listeners(Audience.PAGE)

    def frames(self, run_id="a", step=1):
        self.feed.notify(Change(run_id=run_id, frames=True, step=step))

    def follow(self, run_id=None):
        return aclosing(follow(self.feed, run_id, **self.paces))


def together(scenario, **paces):
    async def main():
        async with asyncio.timeout(20):
            return await scenario(World(**paces))

    return asyncio.run(main())


def read(chunk):
    """Events of a chunk as (name, data)."""
    found = []
    for block in chunk.decode().removesuffix("\n\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields["event"], json.loads(fields["data"])))
    return found


def test_hello_comes_at_once_and_names_the_start():
    async def scenario(world):
        async with world.follow() as stream:
            return read(await anext(stream)), world.feed.start_id

    ((name, data),), start_id = together(scenario)
    assert (name, data) == ("hello", {"start_id": start_id})


def test_what_changed_before_is_not_reported():
    async def scenario(world):
        world.frames("before")
        async with world.follow() as stream:
            await anext(stream)
            world.frames("after")
            return read(await anext(stream))

    ((_, data),) = together(scenario)
    assert data["run_id"] == "after"


def test_what_changes_between_hello_and_the_next_look_is_reported():
    async def scenario(world):
        async with world.follow() as stream:
            await anext(stream)
            await asyncio.to_thread(world.frames, "a", 7)
            return read(await anext(stream))

    ((name, data),) = together(scenario)
    assert name == "change"
    assert data == {"run_id": "a", "frames": True, "decisions": False, "version": 1, "step": 7}


def test_a_waiting_stream_is_woken_from_another_thread():
    async def scenario(world):
        async with world.follow() as stream:
            await anext(stream)
            coming = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            await asyncio.to_thread(world.frames)
            return read(await coming)

    assert together(scenario)[0][1]["run_id"] == "a"


def test_changes_in_quick_succession_are_one_event_and_the_last_is_reported():
    async def scenario(world):
        async with world.follow() as stream:
            await anext(stream)
            world.frames(step=1)
            events = read(await anext(stream))
            for step in range(2, 500):
                world.frames(step=step)
            return events + read(await anext(stream))

    events = together(scenario, pace_seconds=0.01)
    assert [data["step"] for _, data in events] == [1, 499]
    assert [data["version"] for _, data in events] == [1, 499]


def test_between_two_looks_lies_the_pace():
    async def scenario(world):
        loop = asyncio.get_running_loop()
        async with world.follow() as stream:
            await anext(stream)
            world.frames(step=1)
            await anext(stream)
            began = loop.time()
            world.frames(step=2)
            await anext(stream)
            return loop.time() - began

    assert together(scenario, pace_seconds=0.05) >= 0.049


def test_a_slow_client_gets_one_event_a_run_however_much_has_happened():
    async def scenario(world):
        async with world.follow() as stream:
            await anext(stream)
            for step in range(10_000):
                world.frames(f"r{step % 3}", step)
            return read(await anext(stream))

    events = together(scenario)
    told = [(data["run_id"], data["step"]) for _, data in events]
    assert told == [("r1", 9997), ("r2", 9998), ("r0", 9999)]


def test_silence_is_broken_by_a_comment():
    async def scenario(world):
        async with world.follow() as stream:
            await anext(stream)
            return [await anext(stream), await anext(stream)]

    assert together(scenario, heartbeat_seconds=0.001) == [HEARTBEAT] * 2


def test_another_run_does_not_wake_who_follows_one():
    async def scenario(world):
        async with world.follow("a") as stream:
            await anext(stream)
            coming = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            world.frames("b")
            for _ in range(10):
                await asyncio.sleep(0)
            is_quiet = not coming.done()
            world.feed.notify(Change(run_id=None, decisions=True))
            return is_quiet, read(await coming)

    is_quiet, ((_, data),) = together(scenario)
    assert is_quiet
    assert (data["run_id"], data["decisions"]) == (None, True)


@pytest.mark.parametrize("run_id", [None, "a"])
def test_the_end_of_the_server_ends_every_stream(run_id):
    async def scenario(world):
        async with world.follow(run_id) as stream, world.follow(run_id) as pacing:
            await anext(stream)
            await anext(pacing)
            world.frames()
            await anext(pacing)  # its next look is a long pace away
            endings = [asyncio.ensure_future(anext(s, "end")) for s in (stream, pacing)]
            read(await endings[0])
            endings[0] = asyncio.ensure_future(anext(stream, "end"))
            await asyncio.sleep(0)
            world.feed.close()
            return [await ending for ending in endings], world.num_streams

    assert together(scenario, pace_seconds=NEVER) == (["end", "end"], 0)


def test_two_hundred_that_leave_leave_nothing_behind():
    async def scenario(world):
        streams = [follow(world.feed, "a" if i % 2 else None) for i in range(200)]
        for stream in streams:
            await anext(stream)
        number = world.num_streams
        world.frames()
        told = [read(await anext(stream))[0][1]["run_id"] for stream in streams]
        for stream in streams:
            await stream.aclose()
        return number, set(told), world.num_streams, world.feed._listeners

    assert together(scenario) == (200, {"a"}, 0, {})


def test_notify_outside_the_life_of_the_loop_is_harmless():
    feed = ChangeFeed()
    feed.notify(Change(run_id="a"))

    async def main():
        feed.open()
        stream = follow(feed, None)
        await anext(stream)
        return stream, feed.num_listeners(Audience.PAGE)

    _, number = asyncio.run(main())
    feed.notify(Change(run_id="a"))
    assert (number, feed.num_listeners(Audience.PAGE)) == (1, 0)
