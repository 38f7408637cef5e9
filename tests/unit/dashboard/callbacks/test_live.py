"""Updates sent to an open page, and the end of the stream."""

import asyncio
import json

import httpx
import pytest
from pydantic import SecretStr

from dashboard import ids
from dashboard.callbacks import live
from dashboard.callbacks.live import SIGNED_OUT, PageState, changes, follow, run_of
from dashboard.client.live import Link, Updates
from dashboard.visitor import Visitor

ADA = Visitor(name="ada", token=SecretStr("a" * 43), session="s")
HELLO = 'event: hello\ndata: {"start_id": "s1"}\n\n'
ALL = {ids.LIVE_LINK, ids.LIVE_FRAMES, ids.LIVE_DECISIONS, ids.LIVE_CONTROL}


def change(run_id="r", version=1, **given):
    fields = {"run_id": run_id, "frames": True, "decisions": False, "version": version, "step": 0}
    return f"event: change\ndata: {json.dumps(fields | given)}\n\n"


class Tab:
    """A page in a browser: shows a path, remembers what it was given."""

    def __init__(self, path="/"):
        self.shows = path
        self.is_closed = False
        self.rounds = []
        """Data sent at each check, by store, without heartbeats."""
        self.beats = []

    async def path(self):
        await asyncio.sleep(0)  # as over a network
        if isinstance(self.shows, Exception):
            raise self.shows
        self.rounds.append({})
        return self.shows

    def show(self, component_id, data):
        if component_id == ids.LIVE_BEAT:
            self.beats.append(data)
            return
        if not self.rounds:
            self.rounds.append({})
        self.rounds[-1][component_id] = json.loads(json.dumps(data))

    @property
    def holds(self):
        """Current data of the stores."""
        return {name: data for shown in self.rounds for name, data in shown.items()}


class Page:
    """A page that is updated one check at a time."""

    def __init__(self, stage, tab, is_signed_in=lambda visitor: True, visitor=ADA):
        self.stage, self.tab = stage, tab
        following = follow(
            tab, stage.hub, visitor, is_signed_in, clock=stage.clock, pause=self._pause
        )
        self.task = asyncio.create_task(following)
        self._looked, self._next = asyncio.Event(), asyncio.Event()

    async def _pause(self, _seconds):
        self._looked.set()
        self._next.clear()
        await self._next.wait()

    async def looked(self):
        """Wait for the end of a check; return what it sent."""
        await self._looked.wait()
        return self.tab.rounds[-1]

    def go_on(self):
        """Run one more check."""
        self._looked.clear()
        self._next.set()

    async def look(self):
        """Run one more check; return what it sent."""
        self.go_on()
        return await self.looked()

    async def close(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Look again at once where there are no updates."""
    monkeypatch.setattr(live, "_POLL_SECONDS", 0.0)


@pytest.fixture
def watch(play):
    """Run a scenario with a page that is open on a live collector."""

    def run(scenario, tab=None, **given):
        async def whole(stage):
            page = Page(stage, tab or Tab(), **given)
            _, stream = await stage.wire.accept(HELLO)
            await page.looked()
            while page.tab.holds[ids.LIVE_LINK]["link"] != "live":
                await page.look()
            try:
                return await scenario(page, stream)
            finally:
                await page.close()

        return play(whole)

    return run


async def look_until(page, name, **expected):
    """Run checks until a store holds the expected data; return what the last one sent."""
    shown = {}
    while not expected.items() <= page.tab.holds[name].items():
        shown = await page.look()
    return shown


class TestShown:
    def test_first_update_fills_every_store(self, play, clock):
        async def scenario(stage):
            page = Page(stage, Tab("/runs/r"))
            shown = await page.looked()
            await page.close()
            return shown

        assert play(scenario) == {
            ids.LIVE_LINK: {"link": "connecting", "since": clock.now().isoformat()},
            ids.LIVE_FRAMES: {"run_id": "r", "count": 0, "step": 0},
            ids.LIVE_DECISIONS: {"run_id": "r", "count": 0},
            ids.LIVE_CONTROL: {"count": 0},
        }

    def test_the_hello_of_the_collector_changes_all_of_them(self, watch):
        async def scenario(page, _):
            return page.tab.holds

        held = watch(scenario)
        assert set(held) == ALL
        assert {held[name]["count"] for name in ALL - {ids.LIVE_LINK}} == {1}

    def test_without_news_nothing_is_shown(self, watch):
        async def scenario(page, _):
            return [await page.look() for _ in range(5)]

        assert watch(scenario) == [{}] * 5

    @pytest.mark.parametrize(
        ("event", "stores"),
        [
            (change("r", step=7), {ids.LIVE_FRAMES}),
            (change("r", frames=False, decisions=True), {ids.LIVE_DECISIONS}),
            (change("r", decisions=True), {ids.LIVE_FRAMES, ids.LIVE_DECISIONS}),
            (change(None, frames=False, decisions=True), {ids.LIVE_CONTROL}),
        ],
    )
    def test_only_what_changed_is_shown(self, watch, event, stores):
        async def scenario(page, stream):
            before = page.tab.holds
            stream.say(event)
            while page.tab.holds == before:
                shown = await page.look()
            return shown

        assert set(watch(scenario, Tab("/runs/r"))) == stores

    def test_page_of_another_run_gets_no_update(self, watch):
        async def scenario(page, stream):
            stream.say(change("r"), change(None))
            await look_until(page, ids.LIVE_CONTROL, count=2)
            return page.tab.holds[ids.LIVE_FRAMES]

        assert watch(scenario, Tab("/runs/other")) == {"run_id": "other", "count": 1, "step": 0}

    def test_list_of_runs_gets_updates_of_each(self, watch):
        async def scenario(page, stream):
            stream.say(change("a"), change("b", step=5))
            await look_until(page, ids.LIVE_FRAMES, count=3)
            return page.tab.holds[ids.LIVE_FRAMES]

        assert watch(scenario) == {"run_id": None, "count": 3, "step": 0}

    def test_updates_between_two_checks_are_merged(self, watch):
        async def scenario(page, stream):
            num_rounds = len(page.tab.rounds)
            stream.say(*(change("r", number, step=number) for number in range(1, 101)))
            stream.say(change(None))
            listening = page.stage.hub.listening(ADA)
            async with listening as listener:
                await page.stage.updates(listener, until=lambda updates: updates.control == 2)
            shown = await page.look()
            return shown[ids.LIVE_FRAMES], len(page.tab.rounds) - num_rounds

        frames, num_looks = watch(scenario, Tab("/runs/r"))
        assert frames == {"run_id": "r", "count": 101, "step": 100}
        assert num_looks == 1

    def test_link_changes_carry_their_time(self, watch, clock):
        async def scenario(page, stream):
            clock.advance(60)
            stream.end(httpx.ReadError("gone"))
            away = await look_until(page, ids.LIVE_LINK, link="away")
            clock.advance(60)
            await page.stage.pauses.end()
            await page.stage.wire.accept(HELLO)
            return away, await look_until(page, ids.LIVE_LINK, link="live")

        start = clock.now()
        away, back = watch(scenario)
        assert set(away) == {ids.LIVE_LINK}
        assert (clock.now() - start).total_seconds() == 120
        assert away[ids.LIVE_LINK]["since"] == "2026-03-01T12:01:00+00:00"
        assert set(back) == ALL  # events in between were missed
        assert back[ids.LIVE_LINK]["since"] == "2026-03-01T12:02:00+00:00"

    def test_a_token_that_is_not_taken_any_more_is_shown(self, watch):
        async def scenario(page, stream):
            stream.end()
            await page.stage.pauses.end()
            problem = {"title": "x", "status": 401, "code": "unauthenticated", "detail": "no"}
            await page.stage.wire.refuse(httpx.Response(401, json=problem))
            return await look_until(page, ids.LIVE_LINK, link="refused")

        assert set(watch(scenario)) == {ids.LIVE_LINK}


class TestBeats:
    def test_a_page_is_given_the_time_every_few_seconds_and_no_more_often(self, watch, clock):
        async def scenario(page, _):
            page.tab.beats.clear()
            for seconds in (3, 1, 1, 1, 0):
                clock.advance(seconds)
                await page.look()
            return page.tab.beats

        assert watch(scenario) == [
            {"at": "2026-03-01T12:00:03+00:00", "last": False},
            {"at": "2026-03-01T12:00:06+00:00", "last": False},
        ]


class TestMoving:
    def test_another_run_has_other_counts_even_where_the_numbers_are_the_same(self, watch):
        async def scenario(page, _):
            page.tab.shows = "/runs/b"
            return await page.look()

        assert watch(scenario, Tab("/runs/a")) == {
            ids.LIVE_FRAMES: {"run_id": "b", "count": 1, "step": 0},
            ids.LIVE_DECISIONS: {"run_id": "b", "count": 1},
        }

    def test_a_page_of_the_same_run_is_no_news(self, watch):
        async def scenario(page, _):
            page.tab.shows = "/runs/a/"
            return await page.look()

        assert watch(scenario, Tab("/runs/a")) == {}

    def test_back_at_the_list_all_runs_count_again(self, watch):
        async def scenario(page, stream):
            stream.say(change("a"), change("b"), change("c", frames=False, decisions=True))
            await look_until(page, ids.LIVE_FRAMES, count=2)
            page.tab.shows = "/"
            return await look_until(page, ids.LIVE_DECISIONS, run_id=None, count=2)

        shown = watch(scenario, Tab("/runs/a"))
        assert shown[ids.LIVE_FRAMES] == {"run_id": None, "count": 3, "step": 0}

    @pytest.mark.parametrize("path", [None, "", "/", "/control", "/nowhere", "/runs/", "/runs/a/b"])
    def test_page_without_a_run_gets_updates_of_all(self, watch, path):
        async def scenario(page, _):
            return page.tab.holds[ids.LIVE_FRAMES]

        assert watch(scenario, Tab(path))["run_id"] is None


class TestEnd:
    def test_a_tab_that_does_not_answer_for_half_an_hour_ends_it(self, watch, clock):
        async def scenario(page, stream):
            page.tab.shows = TimeoutError()
            await page.look()
            assert not page.task.done()
            clock.advance(1801)
            page.go_on()
            with pytest.raises(TimeoutError):
                await page.task
            return stream.closed.is_set()

        assert watch(scenario)

    def test_frozen_tab_gets_everything_when_it_responds(self, watch, clock):
        async def scenario(page, stream):
            num_beats = len(page.tab.beats)
            page.tab.shows = TimeoutError()
            for _ in range(10):
                clock.advance(60)
                await page.look()
            stream.say(change("r", step=7))
            beats_of_frozen = len(page.tab.beats) - num_beats
            page.tab.shows = "/runs/r"
            await look_until(page, ids.LIVE_FRAMES, step=7)
            return beats_of_frozen, len(page.tab.beats) - num_beats

        assert watch(scenario, Tab("/runs/r")) == (0, 1)

    def test_closed_tab_ends_the_stream(self, watch):
        async def scenario(page, stream):
            num_rounds = len(page.tab.rounds)
            page.tab.is_closed = True
            page.go_on()
            await page.task
            return len(page.tab.rounds) - num_rounds, stream.closed.is_set()

        assert watch(scenario) == (0, True)

    def test_the_end_of_a_session_is_shown_and_ends_it(self, watch):
        sessions = {"s"}

        async def scenario(page, stream):
            sessions.clear()
            page.go_on()
            await page.task
            return page.tab.holds[ids.LIVE_LINK], stream.closed.is_set()

        found = watch(scenario, is_signed_in=lambda visitor: visitor.session in sessions)
        assert found == (SIGNED_OUT, True)

    def test_expired_session_gets_no_updates(self, play):
        async def scenario(stage):
            tab = Tab()
            await follow(tab, stage.hub, ADA, lambda visitor: False, clock=stage.clock)
            return tab.holds, [beat["last"] for beat in tab.beats]

        assert play(scenario) == ({ids.LIVE_LINK: SIGNED_OUT}, [True])

    def test_anonymous_page_is_signed_out_without_a_request(self, play):
        async def scenario(stage):
            tab = Tab()
            await follow(tab, stage.hub, None, lambda visitor: True, clock=stage.clock)
            return tab.holds, stage.wire.requests.empty()

        assert play(scenario) == ({ids.LIVE_LINK: SIGNED_OUT}, True)

    def test_a_connection_that_is_cut_leaves_no_stream(self, watch):
        async def scenario(page, stream):
            await page.close()
            return page.task.cancelled(), stream.closed.is_set()

        assert watch(scenario) == (True, True)

    def test_other_pages_of_the_user_continue(self, watch):
        async def scenario(page, stream):
            other = Page(page.stage, Tab("/runs/r"))
            await other.looked()
            await page.close()
            stream.say(change("r", step=3))
            await look_until(other, ids.LIVE_FRAMES, step=3)
            still_open = not stream.closed.is_set()
            await other.close()
            return still_open

        assert watch(scenario)


class TestRunOf:
    @pytest.mark.parametrize(
        ("path", "run_id"),
        [
            ("/runs/abc", "abc"),
            ("/runs/abc/", "abc"),
            ("/runs/a%2Fb", "a/b"),
            ("/runs/a%20b", "a b"),
            ("/runs/%C3%A9", "\u00e9"),
            ("/runs/%", "%"),
            ("/runs", None),
            ("/runs/", None),
            ("/runs//", None),
            ("/runs/a/b", None),
            ("/runs/a?x", None),
            ("/x/runs/a", None),
            ("runs/a", None),
            ("", None),
            (None, None),
        ],
    )
    def test_only_the_page_of_a_run_has_one(self, path, run_id):
        assert run_of(path) == run_id


class TestChanges:
    def told(self, clock, run_id="r", link=Link.LIVE, **counts):
        return PageState(run_id, Updates(link=link, since=clock.now(), **counts))

    def test_of_a_page_that_knows_nothing_everything(self, clock):
        assert set(changes(None, self.told(clock))) == ALL

    @pytest.mark.parametrize(
        ("counts", "store"),
        [
            ({"frames": 1}, ids.LIVE_FRAMES),
            ({"step": 1}, ids.LIVE_FRAMES),
            ({"decisions": 1}, ids.LIVE_DECISIONS),
            ({"control": 1}, ids.LIVE_CONTROL),
            ({"link": Link.AWAY}, ids.LIVE_LINK),
        ],
    )
    def test_each_count_has_its_store(self, clock, counts, store):
        found = changes(self.told(clock), self.told(clock, **counts))
        assert set(found) == {store}

    def test_the_same_is_no_change(self, clock):
        assert changes(self.told(clock), self.told(clock)) == {}
