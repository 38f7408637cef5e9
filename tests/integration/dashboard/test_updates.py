"""Live updates from a real collector, and its loss and return."""

import asyncio

import httpx
import pytest
from pydantic import SecretStr

from dashboard.client.live import Link
from dashboard.visitor import Visitor

TOKEN, OTHER = "t" * 43, "o" * 43


@pytest.fixture(scope="module")
def guarded(start_collector):
    return start_collector(tokens=(TOKEN, OTHER))


def is_live(updates):
    return updates.link is Link.LIVE


async def told(ear, act, run_id=None):
    """Run an action; return the changes of frames, decisions, control and step."""
    before = ear.listener.updates(run_id)
    await asyncio.to_thread(act)
    after = await ear.until(lambda updates: updates != before, run_id)
    return (
        after.frames > before.frames,
        after.decisions > before.decisions,
        after.control > before.control,
        after.step,
    )


class TestHeard:
    def test_frames_decisions_and_the_switch_each_as_what_they_are(self, collector, job, listen_to):
        def silence():
            body = {"rule": "*", "run_id": job.run_id, "until_step": 99, "reason": "known"}
            job.post("/silences", body)

        def change_the_mode():
            change = {"mode": "observe", "reason": "let me look"}
            assert job.http.patch(f"/runs/{job.run_id}", json=change).is_success

        job.report([1])  # with new series

        async def act(ear):
            await ear.until(is_live)
            return (
                await told(ear, lambda: job.report([2, 3]), job.run_id),
                await told(ear, change_the_mode, job.run_id),
                await told(ear, silence, job.run_id),
            )

        frames, decision, control = listen_to(collector, act)
        assert frames == (True, False, False, 3)
        assert decision == (False, True, False, 3)
        assert control == (False, False, True, 3)

    def test_incident_counts_as_a_decision(self, collector, job, listen_to):
        async def act(ear):
            await ear.until(is_live)
            return await told(ear, lambda: job.report([1], "NaN"), job.run_id)

        assert listen_to(collector, act) == (True, True, False, 1)

    def test_new_run_counts_for_the_list(self, collector, make_job, listen_to):
        async def act(ear):
            await ear.until(is_live)
            return await told(ear, lambda: make_job(collector))

        assert listen_to(collector, act)[1]

    def test_deleted_run_counts(self, collector, make_job, listen_to):
        job = make_job(collector)
        job.end()

        async def act(ear):
            await ear.until(is_live)
            return await told(ear, job.delete, job.run_id)

        assert listen_to(collector, act)[1]


class TestRestart:
    def test_reconnect_counts_everything_as_changed(
        self, start_collector, make_job, listen_to, clock
    ):
        collector = start_collector()
        job = make_job(collector)
        job.report([1])

        async def act(ear):
            live = await ear.until(is_live, job.run_id)
            clock.advance(60)
            await asyncio.to_thread(collector.stop)
            away = await ear.until(lambda updates: updates.link is Link.AWAY, job.run_id)
            clock.advance(60)
            await asyncio.to_thread(collector.start)
            back = await ear.until(is_live, job.run_id)
            after = await told(ear, lambda: job.report([2]), job.run_id)
            return live, away, back, after

        live, away, back, after = listen_to(collector, act)
        assert (away.frames, away.decisions) == (live.frames, live.decisions)
        assert (away.since - live.since).total_seconds() == 60
        assert (back.since - away.since).total_seconds() == 60
        assert back.frames > away.frames
        assert back.decisions > away.decisions
        assert back.control > away.control
        assert after == (True, False, False, 2)

    def test_one_that_is_not_there_yet_is_waited_for(self, start_collector, listen_to):
        collector = start_collector()
        collector.stop()

        async def act(ear):
            away = await ear.until(lambda updates: updates.link is Link.AWAY)
            await asyncio.to_thread(collector.start)
            return away.link, (await ear.until(is_live)).link

        assert listen_to(collector, act) == (Link.AWAY, Link.LIVE)

    def test_something_else_at_its_address_is_no_collector(self, start_collector, listen_to):
        collector = start_collector()
        collector.stop()

        async def page(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi"
            )
            writer.close()
            await writer.wait_closed()

        async def act(ear):
            stranger = await asyncio.start_server(page, "127.0.0.1", collector.port)
            async with stranger:
                return await ear.until(lambda updates: updates.link is Link.AWAY)

        assert listen_to(collector, act).frames == 0


class TestTokens:
    @pytest.mark.parametrize("token", [None, "w" * 43])
    def test_rejected_token_is_reported(self, guarded, listen_to, token):
        async def act(ear):
            return await ear.until(lambda updates: updates.link is Link.REFUSED)

        found = listen_to(guarded, act, token and SecretStr(token))
        assert found.frames == 0

    def test_two_tokens_hear_the_same(self, guarded, make_job, listen_to):
        job = make_job(guarded, token=TOKEN)

        async def act(ear):
            other = Visitor(name="grace", token=SecretStr(OTHER))
            async with ear.hub.listening(other) as second:
                await ear.until(is_live)
                ears = ear, type(ear)(ear.hub, second)
                await ears[1].until(is_live)
                report = asyncio.create_task(asyncio.to_thread(job.report, [1, 2]))
                updates = [
                    await one.until(lambda updates: updates.step == 2, job.run_id) for one in ears
                ]
                await report
                return updates

        first, second = listen_to(guarded, act, SecretStr(TOKEN))
        assert first.frames == second.frames


def streams(collector):
    text = httpx.get(f"{collector.url}/metrics", trust_env=False).text
    (line,) = [line for line in text.splitlines() if line.startswith("stabilizer_event_streams ")]
    return float(line.split()[1])


def test_however_many_pages_listen_the_collector_holds_one_stream(collector, listen_to):
    async def act(ear):
        await ear.until(is_live)
        async with asyncio.TaskGroup() as pages:
            stop = asyncio.Event()

            async def page():
                async with ear.hub.listening(Visitor(name="ada")) as listener:
                    assert is_live(listener.updates(None))
                    await stop.wait()

            for _ in range(100):
                pages.create_task(page())
            await asyncio.sleep(0)
            found = await asyncio.to_thread(streams, collector)
            stop.set()
        return found

    assert listen_to(collector, act) == 1.0
