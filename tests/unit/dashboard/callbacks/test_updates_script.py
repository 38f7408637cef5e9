"""assets/updates.js in a browser: updates wait for answers, and for a finger on a button."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
SCRIPT = (ROOT / "dashboard" / "assets" / "updates.js").read_text()
PAGE = "<button style='position: fixed; left: 0; top: 0; width: 99px; height: 99px'>x</button>"
DASH = "told = []; dash_clientside = {set_props: (id, given) => told.push([id, given.data])};"
FRAMES = "live-frames"


class Screen:
    """A page with the script and a clock of its own, and the pointer upon its button."""

    def __init__(self, page):
        self.page = page
        page.clock.install(time=0)
        page.set_content(PAGE)
        page.clock.pause_at(1)  # seconds; else the page's clock runs on between two calls
        page.evaluate(DASH + SCRIPT)
        page.mouse.move(50, 50)

    def call(self, name, *given):
        self.page.evaluate(
            f"given => {{ dash_clientside.stabilizer.{name}(...given); }}", list(given)
        )

    def updates(self, data, store=FRAMES):
        self.call("keepUpdates", data, store)

    def told(self):
        """Return what was passed on since the last call."""
        return self.page.evaluate("told.splice(0)")


@pytest.fixture
def screen(browser):
    page = browser.new_page()
    yield Screen(page)
    page.close()


def test_idle_page_gets_updates_at_once(screen):
    screen.updates(1)
    assert screen.told() == [[FRAMES, 1]]


def test_while_an_answer_is_under_way_the_newest_news_are_kept(screen):
    screen.call("requestBegan", {"output": "a", "outputs": [1]})
    screen.updates(1)
    screen.updates(2)
    assert screen.told() == []
    screen.call("requestEnded", {"output": "a"})
    screen.page.clock.run_for(1)
    assert screen.told() == [[FRAMES, 2]]


def test_nothing_changes_under_a_button_that_is_pressed(screen):
    screen.page.mouse.down()
    screen.updates(1)
    screen.updates(2)
    screen.page.clock.run_for(5_000)
    assert screen.told() == []
    screen.page.mouse.up()
    assert screen.told() == []  # the click comes first
    screen.page.clock.run_for(100)
    assert screen.told() == [[FRAMES, 2]]
    screen.updates(3)
    assert screen.told() == [[FRAMES, 3]]


def test_click_is_handled_before_updates(screen):
    screen.page.mouse.down()
    screen.updates(1)
    screen.page.mouse.up()
    screen.call("requestBegan", {"output": "dialog", "outputs": [1]})
    screen.page.clock.run_for(1_000)
    assert screen.told() == []
    screen.call("requestEnded", {"output": "dialog"})
    screen.page.clock.run_for(1)
    assert screen.told() == [[FRAMES, 1]]


def test_a_second_press_right_after_the_first_is_waited_for_as_well(screen):
    screen.page.mouse.down()
    screen.updates(1)
    screen.page.mouse.up()
    screen.page.clock.run_for(50)
    screen.page.mouse.down()
    screen.page.clock.run_for(1_000)
    assert screen.told() == []
    screen.page.mouse.up()
    screen.page.clock.run_for(100)
    assert screen.told() == [[FRAMES, 1]]


def test_a_button_that_is_never_let_go_holds_nothing_up_for_ever(screen):
    screen.page.mouse.down()
    screen.updates(1)
    screen.page.clock.run_for(15_000)
    assert screen.told() == [[FRAMES, 1]]
    screen.updates(2)
    assert screen.told() == [[FRAMES, 2]]


@pytest.mark.parametrize("event", ["pointercancel", "blur"])
def test_a_press_that_ends_elsewhere_has_ended(screen, event):
    screen.page.mouse.down()
    screen.updates(1)
    screen.page.evaluate(f"dispatchEvent(new PointerEvent('{event}'))")
    screen.page.clock.run_for(100)
    assert screen.told() == [[FRAMES, 1]]


def test_a_pointer_that_moves_with_no_button_down_has_let_go(screen):
    screen.page.mouse.down()
    screen.updates(1)
    moved = "new PointerEvent('pointermove', {pointerType: 'mouse', buttons: 0})"
    for _ in range(4):
        screen.page.evaluate(f"dispatchEvent({moved})")
        screen.page.clock.run_for(25)
    assert screen.told() == [[FRAMES, 1]]


def test_the_second_button_opens_a_menu_and_holds_nothing_up(screen):
    screen.page.mouse.down(button="right")
    screen.updates(1)
    assert screen.told() == [[FRAMES, 1]]
