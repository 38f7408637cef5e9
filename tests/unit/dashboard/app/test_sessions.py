"""Who is signed in, and until when."""

import pytest
from pydantic import SecretStr

from dashboard.app import sessions as module
from dashboard.app.sessions import Sessions

TOKEN = SecretStr("t" * 43)


@pytest.fixture
def sessions(clock):
    return Sessions(clock, hours=2)


def test_session_returns_its_visitor(sessions):
    session = sessions.begin("ada", TOKEN)
    visitor = sessions.visitor(session)
    assert (visitor.name, visitor.token, visitor.session) == ("ada", TOKEN, session)


@pytest.mark.parametrize("session", [None, "", "made-up", "x" * 10_000])
def test_unknown_session_has_no_visitor(sessions, session):
    sessions.begin("ada", TOKEN)
    assert sessions.visitor(session) is None


def test_ids_are_random(sessions):
    ids = {sessions.begin("ada-lovelace", TOKEN) for _ in range(100)}
    assert len(ids) == 100
    assert min(map(len, ids)) >= 43  # 256 random bits
    assert not any("ada-lovelace" in one or TOKEN.get_secret_value() in one for one in ids)


def test_it_ends_when_its_time_is_over_and_not_before(sessions, clock):
    session = sessions.begin("ada", TOKEN)
    clock.advance(2 * 3600 - 1)
    assert sessions.visitor(session) is not None
    clock.advance(1)
    assert sessions.visitor(session) is None
    assert sessions.seconds == 7200


def test_a_wall_clock_that_is_set_ends_no_session(clock):
    sessions = Sessions(clock, hours=2)
    began = clock.monotonic()
    clock.monotonic = lambda: began  # no time has passed
    session = sessions.begin("ada", TOKEN)
    clock.advance(86_400)
    assert sessions.visitor(session) is not None


def test_signing_out_ends_it_and_twice_is_harmless(sessions):
    first, second = sessions.begin("ada", TOKEN), sessions.begin("ada", TOKEN)
    for _ in range(2):
        sessions.end(first)
        sessions.end(None)
        sessions.end("made-up")
    assert sessions.visitor(first) is None
    assert sessions.visitor(second).name == "ada"


def test_ended_ones_take_no_memory(sessions, clock):
    for number in range(50):
        sessions.begin(f"p{number}", TOKEN)
    clock.advance(7200)
    sessions.begin("ada", TOKEN)
    assert len(sessions._by_id) == len(sessions._unused) == 1


def test_a_session_counts_as_taken_up_when_a_browser_comes_with_it_and_once(sessions, clock):
    first, second, third = (sessions.begin("ada", TOKEN) for _ in range(3))
    assert sessions.num_taken_up == 0
    for _ in range(2):
        sessions.visitor(first)
        sessions.visitor("made-up")
        sessions.visitor(None)
        assert sessions.num_taken_up == 1
    sessions.end(second)
    sessions.visitor(second)
    clock.advance(7200)
    sessions.visitor(third)
    assert sessions.num_taken_up == 1
    assert second not in sessions._unused


def test_beyond_the_limit_the_oldest_ends(sessions, monkeypatch):
    monkeypatch.setattr(module, "_MAX_SESSIONS", 3)
    ids = [sessions.begin(f"p{number}", TOKEN) for number in range(5)]
    found = [sessions.visitor(one) for one in ids]
    assert [one and one.name for one in found] == [None, None, "p2", "p3", "p4"]


def test_restart_ends_all_sessions(sessions, clock):
    session = sessions.begin("ada", TOKEN)
    assert Sessions(clock, hours=2).visitor(session) is None
