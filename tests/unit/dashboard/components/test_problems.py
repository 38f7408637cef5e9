"""Error pages, error messages of parts, the link badge and the banner."""

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
def test_every_error_page_has_a_link(parts, text_of, error):
    page = problem_of(error, "/runs/x")
    (way,) = ways(parts, page)
    assert way.href.startswith("/")
    assert len(text_of(page)) > 30


def test_sign_in_returns_to_the_page(parts):
    (way,) = ways(parts, problem_of(ERRORS["signed out"], ODD_PATH))
    assert isinstance(way, html.A)  # loaded from the beginning: it is no page of Dash
    address = urlsplit(way.href)
    assert address.path == "/signin"
    assert parse_qs(address.query) == {"ended": ["true"], "next": [ODD_PATH]}


def test_missing_run_is_named(text_of):
    assert "Run not found" in text_of(problem_of(ERRORS["gone"], "/"))


def test_unavailable_collector_does_not_affect_training(text_of):
    assert "training continues" in text_of(problem_of(AWAY, "/"))


def test_part_of_a_page_shows_its_error(text_of):
    assert "Not like this" in text_of(small_problem(ERRORS["refused"]))


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
def test_badge_shows_the_link_state(text_of, link, word):
    assert text_of(link_badge(link)) == word


@pytest.mark.parametrize(
    "link",
    [None, {}, {"link": "connecting"}, {"link": "polled"}, {"link": "live"}],
    ids=str,
)
def test_working_link_has_no_banner(link):
    assert link_banner(link, "/") is None


@pytest.mark.parametrize(
    ("since", "said"),
    [(SINCE, "since 14:03 UTC."), (None, "not responding."), ("soon", "not responding.")],
)
def test_unavailable_collector_has_a_banner(text_of, since, said):
    banner = text_of(link_banner({"link": "away", "since": since}, "/"))
    assert said in banner
    assert "Training continues" in banner


@pytest.mark.parametrize("link", ["refused", "signed_out"])
def test_expired_session_has_a_sign_in_link(parts, link):
    banner = link_banner({"link": link, "since": None}, ODD_PATH)
    (way,) = ways(parts, banner)
    assert parse_qs(urlsplit(way.href).query)["next"] == [ODD_PATH]
