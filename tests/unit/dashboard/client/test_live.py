"""Live updates from a collector that comes, goes, rejects, and sends unexpected events."""

import asyncio
import json
import logging

import httpx
import pytest
from pydantic import SecretStr

from dashboard.client.live import Link
from dashboard.visitor import Visitor

ADA, BOB = (Visitor(name=name, token=SecretStr(name[0] * 43)) for name in ("ada", "bob"))
HELLO = 'event: hello\ndata: {"start_id": "s1"}\n\n'
ALIVE = ": alive\n\n"
WAIT_SECONDS = 20


def change(run_id="r", version=1, **given):
    fields = {"run_id": run_id, "frames": True, "decisions": False, "version": version, "step": 0}
    return f"event: change\ndata: {json.dumps(fields | given)}\n\n"


class TestHello:
    def test_before_any_answer_it_is_connecting_and_then_live(self, play, clock):
        async def scenario(stage):
            async with stage.hub.listening(ADA) as listener:
                before = listener.updates(None)
                clock.advance(5)
                request, _ = await stage.wire.accept(HELLO)
                return before, await stage.linked(listener, Link.LIVE), request

        before, after, request = play(scenario)
        assert before.link is Link.CONNECTING
        assert (after.since - before.since).total_seconds() == 5
        assert request.url.path == "/api/v1/events"
        assert request.headers["authorization"] == f"Bearer {'a' * 43}"
        assert request.headers["x-stabilizer-actor"] == "ada"

    def test_it_counts_everything_as_changed(self, play):
        async def scenario(stage):
            async with stage.hub.listening(ADA) as listener:
                before = listener.updates("r"), listener.updates(None)
                await stage.wire.accept(HELLO)
                await stage.linked(listener, Link.LIVE)
                return zip(before, (listener.updates("r"), listener.updates(None)), strict=True)

        for before, after in play(scenario):
            assert after.frames > before.frames
            assert after.decisions > before.decisions
            assert after.control > before.control


class TestChanges:
    def counted(self, play, *events, run_ids=("r", "other", None)):
        """Say events; return by how much the counts of each run have grown, and their steps."""

        async def scenario(stage):
            async with stage.hub.listening(ADA) as listener:
                await stage.wire.accept(
                    HELLO, *events, change("last", frames=False, decisions=True)
                )
                start = 1  # by the hello
                await stage.updates(
                    listener, "last", until=lambda updates: updates.decisions > start
                )
                found = [listener.updates(run_id) for run_id in run_ids]
                return [
                    (n.frames - start, n.decisions - start, n.control - start, n.step)
                    for n in found
                ]

        return play(scenario)

    def test_frames_count_for_the_run_and_for_all_with_its_step(self, play):
        of_run, of_other, of_all = self.counted(play, change(step=7), change(step=9, version=2))
        assert of_run == (2, 0, 0, 9)
        assert of_other == (0, 0, 0, 0)
        assert of_all == (2, 1, 0, 0)  # the last event was a decision

    def test_decisions_count_apart_from_frames(self, play):
        of_run, _, of_all = self.counted(
            play,
            change(frames=False, decisions=True),
            change("other", frames=True, decisions=True),
        )
        assert of_run == (0, 1, 0, 0)
        assert of_all == (1, 3, 0, 0)

    def test_control_changes_count_for_every_page(self, play):
        for counts in self.counted(play, change(None, decisions=True), change(None, version=2)):
            assert counts[2] == 2
            assert counts[0] == 0

    def test_signs_of_life_and_unknown_events_change_nothing(self, play):
        later = "event: weather\ndata: rain\n\n"
        for frames, _, control, _ in self.counted(play, ALIVE, later, "data: x\n\n", ALIVE):
            assert (frames, control) == (0, 0)

    def test_events_in_pieces_are_put_together(self, play):
        pieces = list(change(step=5).replace("\n", "\r\n"))
        assert self.counted(play, *pieces)[0] == (1, 0, 0, 5)

    def test_step_after_a_rollback_is_reported(self, play):
        assert self.counted(play, change(step=90), change(step=40, version=2))[0][3] == 40

    def test_five_hundred_runs_stay_apart(self, play):
        events = [change(f"run-{number}", step=number) for number in range(500)]
        runs = [f"run-{number}" for number in range(500)]
        found = self.counted(play, *events, run_ids=runs)
        assert found == [(1, 0, 0, number) for number in range(500)]


class TestWaiting:
    def test_it_ends_with_the_first_news_of_the_run_and_not_with_others(self, play):
        async def scenario(stage):
            async with stage.hub.listening(ADA) as listener:
                _, stream = await stage.wire.accept(HELLO)
                await stage.linked(listener, Link.LIVE)
                known = listener.updates("r")
                waiting = asyncio.create_task(listener.wait("r", known, WAIT_SECONDS))
                of_all = listener.updates(None)
                stream.say(change("other"))
                await stage.updates(listener, until=lambda updates: updates != of_all)
                early = waiting.done()
                stream.say(change("r"))
                return early, known, await waiting

        early, known, found = play(scenario)
        assert not early
        assert found.frames == known.frames + 1

    def test_without_news_it_ends_when_the_time_is_over(self, play):
        async def scenario(stage):
            async with stage.hub.listening(ADA) as listener:
                known = listener.updates("r")
                return known, await listener.wait("r", known, 0.0)

        known, found = play(scenario)
        assert found == known

    def test_news_from_before_end_it_at_once(self, play):
        async def scenario(stage):
            async with stage.hub.listening(ADA) as listener:
                old = listener.updates("r")
                await stage.wire.accept(HELLO)
                await stage.linked(listener, Link.LIVE)
                return old, await listener.wait("r", old, WAIT_SECONDS)

        old, found = play(scenario)
        assert found.frames > old.frames

    def test_every_listener_is_notified(self, play):
        async def scenario(stage):
            async with stage.hub.listening(ADA) as listener:
                _, stream = await stage.wire.accept(HELLO)
                await stage.linked(listener, Link.LIVE)
                known = listener.updates("r")
                waiting = [
                    asyncio.create_task(listener.wait("r", known, WAIT_SECONDS)) for _ in range(50)
                ]
                await asyncio.sleep(0)
                waiting[0].cancel()
                stream.say(change("r"))
                return await asyncio.gather(*waiting, return_exceptions=True)

        first, *others = play(scenario)
        assert isinstance(first, asyncio.CancelledError)
        assert {updates.frames for updates in others} == {2}


def problem(status, code):
    document = {"title": "x", "status": status, "code": code, "detail": "no"}
    return httpx.Response(status, json=document)


class TestAway:
    def test_ended_stream_is_reported_and_reopened(self, play, clock):
        async def scenario(stage):
            async with stage.hub.listening(ADA) as listener:
                _, stream = await stage.wire.accept(HELLO, change("r"))
                live = await stage.updates(listener, "r", until=lambda updates: updates.frames == 2)
                clock.advance(60)
                stream.end()
                away = await stage.linked(listener, Link.AWAY)
                clock.advance(30)
                still = listener.updates("r")
                await stage.pauses.end()
                await stage.wire.accept(HELLO)
                await stage.linked(listener, Link.LIVE)
                return live, away, still, listener.updates("r"), stream.closed.is_set()

        live, away, still, back, closed = play(scenario)
        assert (away.since - live.since).total_seconds() == 60
        assert still.since == away.since
        assert (back.since - away.since).total_seconds() == 30
        assert back.frames > live.frames
        assert back.decisions > live.decisions
        assert back.control > live.control
        assert closed

    @pytest.mark.parametrize(
        "failure",
        [
            httpx.ConnectError("refused"),
            httpx.ConnectTimeout("nobody"),
            httpx.ReadTimeout("silent"),
            httpx.RemoteProtocolError("nonsense"),
            httpx.Response(200, text="<html>hello</html>", headers={"content-type": "text/html"}),
            httpx.Response(200, json={"a": 1}),
            httpx.Response(302, headers={"location": "https://login.example"}),
            httpx.Response(401, text="who are you?"),
            httpx.Response(502, text="bad gateway"),
            problem(503, "storage_unavailable"),
            problem(404, "path_not_found"),
            problem(421, "host_not_allowed"),
        ],
        ids=lambda failure: getattr(failure, "status_code", type(failure).__name__),
    )
    def test_whatever_else_answers_is_no_collector(self, play, failure):
        async def scenario(stage):
            async with stage.hub.listening(ADA) as listener:
                await stage.wire.refuse(failure)
                away = await stage.linked(listener, Link.AWAY)
                await stage.pauses.end()
                await stage.wire.accept(HELLO)
                return away, await stage.linked(listener, Link.LIVE)

        away, back = play(scenario)
        assert away.frames == 0
        assert back.frames == 1

    @pytest.mark.parametrize(
        "failure", [httpx.ReadTimeout("silence"), httpx.ReadError("reset"), None]
    )
    def test_a_stream_that_breaks_off_is_away(self, play, failure):
        async def scenario(stage):
            async with stage.hub.listening(ADA) as listener:
                _, stream = await stage.wire.accept(HELLO, ALIVE)
                await stage.linked(listener, Link.LIVE)
                stream.end(failure)
                return await stage.linked(listener, Link.AWAY)

        assert play(scenario).link is Link.AWAY

    def test_two_missed_heartbeats_end_the_stream(self, play):
        async def scenario(stage):
            async with stage.hub.listening(ADA):
                request, _ = await stage.wire.accept(HELLO)
                return request.extensions["timeout"]

        timeout = play(scenario)
        assert 20 < timeout["read"] < 30  # the collector sends a heartbeat every 10 seconds
        assert timeout["connect"] == 10

    @pytest.mark.parametrize(
        "event",
        [
            "event: change\ndata: nonsense\n\n",
            "event: change\ndata: {}\n\n",
            change(colour="red"),
            change(step="many"),
        ],
    )
    def test_unexpected_event_is_an_error(self, play, caplog, event):
        async def scenario(stage):
            async with stage.hub.listening(ADA) as listener:
                await stage.wire.accept(HELLO, event, change("r"))
                await stage.linked(listener, Link.AWAY)
                return listener.updates("r")

        with caplog.at_level(logging.WARNING):
            assert play(scenario).frames == 1
        assert "must have the same version" in caplog.text

    def test_pauses_grow_while_it_stays_away(self, play):
        async def scenario(stage):
            async with stage.hub.listening(ADA) as listener:
                for _ in range(8):
                    await stage.wire.refuse(httpx.ConnectError("refused"))
                    await stage.pauses.end()
                await stage.wire.accept(HELLO)
                await stage.linked(listener, Link.LIVE)
                return stage.pauses.seconds

        assert play(scenario) == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]

    def test_a_hello_that_breaks_off_each_time_does_not_shorten_them(self, play):
        async def scenario(stage):
            async with stage.hub.listening(ADA):
                for _ in range(4):
                    _, stream = await stage.wire.accept(HELLO)
                    stream.end()
                    await stage.pauses.end()
                return stage.pauses.seconds

        assert play(scenario) == [0.25, 0.5, 1.0, 2.0]

    def test_after_a_stream_that_lasted_they_are_short_again(self, play, clock):
        async def scenario(stage):
            async with stage.hub.listening(ADA) as listener:
                for _ in range(5):
                    await stage.wire.refuse(httpx.ConnectError("refused"))
                    await stage.pauses.end()
                _, stream = await stage.wire.accept(HELLO)
                await stage.linked(listener, Link.LIVE)
                clock.advance(60)
                stream.end()
                await stage.linked(listener, Link.AWAY)
                await stage.pauses.end()
                return stage.pauses.seconds

        assert play(scenario)[-2:] == [4.0, 0.25]

    def test_it_is_logged_once_and_not_with_every_try(self, play, caplog):
        async def scenario(stage):
            async with stage.hub.listening(ADA):
                for _ in range(5):
                    await stage.wire.refuse(httpx.ConnectError("no route"))
                    await stage.pauses.end()

        with caplog.at_level(logging.WARNING):
            play(scenario)
        assert [record.getMessage() for record in caplog.records] == [
            "the collector at http://collector: no route"
        ]


class TestRefused:
    def test_rejected_token_is_reported_and_retried(self, play, caplog):
        async def scenario(stage):
            async with stage.hub.listening(ADA) as listener:
                await stage.wire.refuse(problem(401, "unauthenticated"))
                refused = await stage.linked(listener, Link.REFUSED)
                await stage.pauses.end()
                await stage.wire.accept(HELLO)  # it was restarted with that token
                return refused, await stage.linked(listener, Link.LIVE)

        refused, back = play(scenario)
        assert refused.frames == 0
        assert back.frames == 1
        assert "aaa" not in caplog.text

    def test_revoked_token_is_reported(self, play):
        async def scenario(stage):
            async with stage.hub.listening(ADA) as listener:
                _, stream = await stage.wire.accept(HELLO)
                await stage.linked(listener, Link.LIVE)
                stream.end()
                await stage.linked(listener, Link.AWAY)
                await stage.pauses.end()
                await stage.wire.refuse(problem(401, "unauthenticated"))
                return await stage.linked(listener, Link.REFUSED)

        assert play(scenario).link is Link.REFUSED


class TestSharing:
    def test_pages_of_one_token_share_a_stream(self, play):
        async def scenario(stage):
            again = Visitor(name="somebody else", token=ADA.token)
            async with stage.hub.listening(ADA) as first:
                await stage.wire.accept(HELLO)
                await stage.linked(first, Link.LIVE)
                async with stage.hub.listening(again) as second:
                    await asyncio.sleep(0)
                    return second.updates(None).link, stage.wire.requests.empty()

        assert play(scenario) == (Link.LIVE, True)

    def test_two_tokens_have_two_streams_and_hear_each_their_own(self, play):
        async def scenario(stage):
            async with stage.hub.listening(ADA) as first, stage.hub.listening(BOB) as second:
                requests = [await stage.wire.accept(HELLO) for _ in range(2)]
                await stage.linked(first, Link.LIVE)
                await stage.linked(second, Link.LIVE)
                requests[0][1].say(change("r", step=3))
                await stage.updates(first, "r", until=lambda updates: updates.step == 3)
                tokens = [request.headers["authorization"][-1] for request, _ in requests]
                return tokens, second.updates("r").step

        tokens, step_of_bob = play(scenario)
        assert tokens == ["a", "b"]
        assert step_of_bob == 0

    def test_stream_is_shared_without_tokens(self, play):
        async def scenario(stage):
            nobody = Visitor(name="ada"), Visitor(name="bob")
            async with stage.hub.listening(nobody[0]), stage.hub.listening(nobody[1]):
                request, _ = await stage.wire.accept(HELLO)
                await asyncio.sleep(0)
                return request.headers, stage.wire.requests.empty()

        headers, is_only_one = play(scenario)
        assert "authorization" not in headers
        assert is_only_one

    def test_the_last_to_leave_closes_the_stream(self, play):
        async def scenario(stage):
            async with stage.hub.listening(ADA) as first:
                async with stage.hub.listening(ADA):
                    _, stream = await stage.wire.accept(HELLO)
                    await stage.linked(first, Link.LIVE)
                after_one = stream.closed.is_set()
            return after_one, stream.closed.is_set()

        assert play(scenario) == (False, True)

    def test_who_comes_after_that_gets_a_new_one(self, play):
        async def scenario(stage):
            async with stage.hub.listening(ADA) as listener:
                await stage.wire.accept(HELLO)
                await stage.linked(listener, Link.LIVE)
            async with stage.hub.listening(ADA) as listener:
                before = listener.updates(None).link
                await stage.wire.accept(HELLO)
                return before, (await stage.linked(listener, Link.LIVE)).link

        assert play(scenario) == (Link.CONNECTING, Link.LIVE)

    def test_one_that_leaves_by_an_error_or_is_cancelled_is_forgotten(self, play):
        async def scenario(stage):
            async def page():
                async with stage.hub.listening(ADA) as listener:
                    await listener.wait(None, listener.updates(None), WAIT_SECONDS)

            task = asyncio.create_task(page())
            _, stream = await stage.wire.accept()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return stream.closed.is_set()

        assert play(scenario)


class TestClose:
    @pytest.mark.parametrize("moment", ["asking", "live", "pausing"])
    def test_it_ends_every_stream_at_every_moment_and_twice_is_harmless(self, play, moment):
        async def scenario(stage):
            async with stage.hub.listening(ADA) as listener, stage.hub.listening(BOB):
                if moment == "live":
                    await stage.wire.accept(HELLO)
                    await stage.linked(listener, Link.LIVE)
                elif moment == "pausing":
                    await stage.wire.refuse(httpx.ConnectError("refused"))
                    await stage.linked(listener, Link.AWAY)
                for _ in range(2):
                    await stage.hub.close()
                return {task.get_coro().__name__ for task in asyncio.all_tasks()}

        assert "_follow" not in play(scenario)
