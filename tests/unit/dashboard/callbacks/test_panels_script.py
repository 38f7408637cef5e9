"""assets/panels.js in a browser: new samples go only to the drawing that they were read for."""

from pathlib import Path

import pytest

from dashboard import ids

ROOT = Path(__file__).parents[4]
SCRIPT = (ROOT / "dashboard" / "assets" / "panels.js").read_text()
NOTHING = "nothing"
VALUE = [{"x": [[3]], "y": [[1.5]], "customdata": [[1]]}, [0]]


@pytest.fixture(scope="module")
def page(browser):
    opened = browser.new_page()
    opened.evaluate(f"window.dash_clientside = {{no_update: '{NOTHING}'}}; {SCRIPT}")
    yield opened
    opened.close()


@pytest.fixture
def extend(page):
    """Hand over an extension to a page that has `shown`."""

    def act(extension, shown):
        call = "given => dash_clientside.stabilizer.extendPanels(...given)"
        return page.evaluate(call, [extension, shown, list(ids.PANELS)])

    return act


def shown(number=7, drawn_at=100.25):
    return {"number": number, "drawn_at": drawn_at, "panels": {}, "read_to": 2}


def extension(**given):
    after = {**shown(**given), "number": given.get("number", 7) + 1, "read_to": 3}
    return {"number": after["number"] - 1, "updates": {ids.CHART_LOSS: VALUE}, "shown": after}


def test_new_samples_go_to_their_panel_and_the_page_keeps_what_it_has_then(extend):
    new = extension()
    at = ids.PANELS.index(ids.CHART_LOSS)
    *panels, after = extend(new, shown())
    assert panels[at] == VALUE
    assert panels[:at] + panels[at + 1 :] == [NOTHING] * (len(ids.PANELS) - 1)
    assert after == new["shown"]


@pytest.mark.parametrize(
    ("given", "has"),
    [
        (None, shown()),
        (extension(), None),
        (extension(), shown(number=8)),
        (extension(), shown(drawn_at=101.0)),
        (extension(number=8), shown()),
    ],
    ids=["nothing new", "nothing drawn", "extended since", "drawn since or another run", "early"],
)
def test_what_was_read_for_something_else_is_left_out(extend, given, has):
    assert extend(given, has) == [NOTHING] * (len(ids.PANELS) + 1)
