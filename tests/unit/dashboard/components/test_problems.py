"""What pages say when something is wrong: as a page, in one place, and above every page."""

from urllib.parse import parse_qs, urlsplit

import pytest
from dash import dcc, html

from dashboard.components.connection import link_badge, link_banner
from dashboard.components.problems import problem_of, small_problem
from dashboard.errors import (
    CollectorRefusedError,
    CollectorUnavailableError,
    DashboardError,
    MissingError,
    SignInRequiredError,
)

AWAY = CollectorUnavailableError("the collector is not responding", url="http://c")
ERRORS = {
    "away": AWAY,
    "gone": MissingError("there is no run 'x'", code="unknown_run"),
    "refused": CollectorRefusedError("not like this", code="invalid_input", status=422),
    "any": DashboardError("something else"),
    "signed out": SignInRequiredError("not signed in"),
}
ODD_PATH = "/runs/a%2Fb?next=//evil.example&x=<b>"
SINCE = "2026-03-01T14:03:05+00:00"


def ways(parts, node):
    return [part for part in parts(node) if isinstance(part, dcc.Link | html.A)]


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_every_problem_fills_the_page_and_leads_on(parts, text_of, error):
    page = problem_of(error, "/runs/x")
    (way,) = ways(parts, page)
    assert way.href.startswith("/")
    assert len(text_of(page)) > 30


def test_who_must_sign_in_comes_back_to_where_they_were(parts):
    (way,) = ways(parts, problem_of(ERRORS["signed out"], ODD_PATH))
    assert isinstance(way, html.A)  # loaded from the beginning: it is no page of Dash
    address = urlsplit(way.href)
    assert address.path == "/signin"
    assert parse_qs(address.query) == {"ended": ["true"], "next": [ODD_PATH]}


def test_a_run_that_is_gone_is_no_riddle(text_of):
    assert "Run not found" in text_of(problem_of(ERRORS["gone"], "/"))


def test_a_collector_that_is_away_is_said_to_harm_no_job(text_of):
    assert "training continues" in text_of(problem_of(AWAY, "/"))


def test_a_part_of_a_page_says_what_is_wrong_there(text_of):
    assert "not like this" in text_of(small_problem(ERRORS["refused"]))


@pytest.mark.parametrize(
    ("link", "word"),
    [
        (None, "connecting"),
        ({}, "connecting"),
        ({"link": "connecting", "since": SINCE}, "connecting"),
        ({"link": "something new"}, "connecting"),
        ({"link": "live", "since": SINCE}, "live"),
        ({"link": "away", "since": SINCE}, "collector not responding since 14:03 UTC"),
        ({"link": "away", "since": None}, "collector not responding"),
        ({"link": "away", "since": "yesterday"}, "collector not responding"),
        ({"link": "refused", "since": SINCE}, "session expired"),
        ({"link": "signed_out", "since": None}, "session expired"),
        ({"link": "polled", "since": None}, "refreshes every 5 s"),
    ],
    ids=str,
)
def test_the_badge_says_how_fresh_the_page_is(text_of, link, word):
    assert text_of(link_badge(link)) == word


@pytest.mark.parametrize(
    "link",
    [None, {}, {"link": "connecting"}, {"link": "polled"}, {"link": "live"}],
    ids=str,
)
def test_where_all_is_well_there_is_no_banner(link):
    assert link_banner(link, "/") is None


@pytest.mark.parametrize(
    ("since", "said"),
    [(SINCE, "since 14:03 UTC."), (None, "not responding."), ("soon", "not responding.")],
)
def test_a_collector_that_is_away_is_told_above_the_page(text_of, since, said):
    banner = text_of(link_banner({"link": "away", "since": since}, "/"))
    assert said in banner
    assert "Training continues" in banner


@pytest.mark.parametrize("link", ["refused", "signed_out"])
def test_who_is_signed_out_is_led_to_sign_in_and_back(parts, link):
    banner = link_banner({"link": link, "since": None}, ODD_PATH)
    (way,) = ways(parts, banner)
    assert parse_qs(urlsplit(way.href).query)["next"] == [ODD_PATH]
