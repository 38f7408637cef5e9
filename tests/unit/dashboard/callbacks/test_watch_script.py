"""assets/watch.js and times.js in a browser: a page without heartbeats shows it, and recovers."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from dashboard import ids
from dashboard.components.connection import link_badge

ROOT = Path(__file__).parents[4]
ASSETS = ROOT / "dashboard" / "assets"
TIMES, WATCH = ((ASSETS / name).read_text() for name in ("times.js", "watch.js"))

START = "2026-03-01T12:00:00+00:00"
DASH = (
    "told = []; dash_clientside = {set_props: (id, given) => told.push([id, given.data])};"
    "Object.defineProperty(document, 'hidden', {get: () => window.isHidden === true});"
    "asked = 0; const ask = fetch; fetch = function (...given) {"
    "  asked += 1; return ask(...given).finally(() => { asked -= 1; }); };"
)
AGE = f'<time class="time-ago" datetime="{START}">new</time>'
PAGE = f"<!doctype html>{AGE}<main></main><script>{DASH}{TIMES}{WATCH}</script>"


class Screen:
    """A page with the scripts, a clock of its own, and a dashboard that is there or not."""

    def __init__(self, page, before=""):
        self.page = page
        self.is_there = True
        self.num_loaded = 0
        page.clock.install(time=START)
        page.clock.pause_at("2026-03-01T12:00:01+00:00")
        page.add_init_script(before)
        page.route("**/*", self._answer)
        page.goto("http://page.test/")

    def _answer(self, route):
        if not route.request.url.endswith("/healthz"):
            self.num_loaded += 1
            route.fulfill(content_type="text/html", body=PAGE)
        elif self.is_there:
            route.fulfill(json={"status": "ok"}, headers={"Date": "Sun, 01 Mar 2026 12:00:00 GMT"})
        else:
            route.abort("connectionrefused")

    def passes(self, seconds):
        """Let time pass; requests are answered within the same second."""
        for _ in range(seconds):
            self.page.clock.run_for(1000)
            self.page.wait_for_function("asked === 0")

    def beat(self, at=START, *, last=False):
        beat = {"at": at, "last": last}
        self.page.evaluate("beat => dash_clientside.stabilizer.takeBeat(beat)", beat)

    def says(self, state):
        """Wait until the page is in the state `lost`, `back` or None."""
        html = self.page.locator("html")
        if state is None:
            expect(html).not_to_have_attribute("data-dashboard", re.compile(""))
        else:
            expect(html).to_have_attribute("data-dashboard", state)

    def told(self):
        """Return what was passed on since the last call."""
        return self.page.evaluate("told.splice(0)")


@pytest.fixture
def open_screen(browser):
    pages = []

    def open_(before=""):
        pages.append(browser.new_page())
        return Screen(pages[-1], before)

    yield open_
    for page in pages:
        page.close()


@pytest.fixture
def screen(open_screen):
    return open_screen()


def test_a_page_that_hears_beats_says_nothing(screen):
    for _ in range(10):
        screen.beat()
        screen.passes(5)
        screen.says(None)
    assert screen.num_loaded == 1


def test_without_beats_the_page_is_lost_and_a_beat_heals_it(screen):
    screen.is_there = False
    screen.beat()
    screen.passes(10)
    screen.says(None)
    screen.passes(5)
    screen.says("lost")
    screen.beat()
    screen.says(None)
    assert screen.num_loaded == 1


def test_page_reloads_when_the_dashboard_is_back(screen):
    screen.beat()
    screen.is_there = False
    screen.passes(90)
    screen.says("lost")
    screen.is_there = True
    with screen.page.expect_navigation():
        screen.passes(4)
    assert screen.num_loaded == 2


def test_open_dialog_prevents_a_reload(screen):
    screen.beat()
    screen.page.evaluate("document.querySelector('main').setAttribute('role', 'dialog')")
    screen.passes(90)
    screen.says("back")
    screen.is_there = False
    screen.passes(4)
    screen.says("lost")
    screen.is_there = True
    screen.passes(4)
    screen.says("back")
    assert screen.num_loaded == 1
    screen.page.evaluate("document.querySelector('main').removeAttribute('role')")
    with screen.page.expect_navigation():
        screen.passes(4)


def test_a_page_that_was_loaded_just_now_is_not_loaded_again_by_itself(screen):
    screen.beat()
    screen.passes(20)
    screen.says("back")
    assert screen.num_loaded == 1


def test_hidden_and_frozen_time_does_not_count(screen):
    screen.beat()
    screen.page.clock.fast_forward(600_000)
    screen.says(None)
    screen.page.evaluate("window.isHidden = true")
    screen.passes(60)
    screen.page.evaluate("window.isHidden = false")
    screen.passes(5)
    screen.says(None)
    assert screen.num_loaded == 1


def test_after_the_end_of_a_session_no_beat_is_missed(screen):
    screen.beat(last=True)
    screen.passes(90)
    screen.says(None)
    assert screen.num_loaded == 1


POLLED = [ids.LIVE_LINK, *ids.INCOMING.values()]


@pytest.mark.parametrize("way", ["no SharedWorker", "no WebSocket"])
def test_a_page_to_which_no_beat_can_come_asks_by_itself(open_screen, way):
    screen = open_screen("delete window.SharedWorker" if way == "no SharedWorker" else "")
    screen.passes(2 if way == "no SharedWorker" else 14)
    first = screen.told()
    screen.passes(6)
    second = screen.told()
    screen.says(None)
    assert [name for name, _ in first] == [name for name, _ in second] == POLLED
    assert all(one != other for one, other in zip(first, second, strict=True))
    assert link_badge(first[0][1]).title is not None
    screen.is_there = False
    screen.passes(14)
    screen.says("lost")


def test_beats_end_the_asking(open_screen):
    screen = open_screen()
    screen.passes(14)
    assert len(screen.told()) == len(POLLED)
    screen.beat()
    screen.passes(9)
    assert screen.page.evaluate("told.length") == 0


@pytest.mark.parametrize(
    ("server", "age"),
    [("12:05:01", "5 min ago"), ("12:00:01", "just now"), ("11:50:00", "just now")],
)
def test_ages_follow_the_clock_of_the_server(screen, server, age):
    screen.page.evaluate("document.querySelector('time').firstChild.nodeValue = 'new'")
    screen.beat(f"2026-03-01T{server}+00:00")
    screen.passes(1)
    expect(screen.page.locator("time")).to_have_text(age)
