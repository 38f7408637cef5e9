"""The control page with a real collector: only changed parts are updated."""

import json
import re
from datetime import timedelta

import pytest
from dash import no_update

from dashboard import ids
from dashboard.actions.arming import set_armed
from dashboard.actions.mode import change_mode
from dashboard.actions.silence import ALL_RULES, SilenceFields, silence_rule
from dashboard.callbacks.control import PARTS, view_control
from dashboard.errors import CollectorUnavailableError


class Screen:
    """The page in a browser: keeps what it was given."""

    def __init__(self, ask, collector):
        self.ask, self.collector, self.facts = ask, collector, None

    def does(self, act):
        return self.ask(self.collector, act)

    def renew(self):
        """Refresh as the page does; return the updated parts, by id."""
        facts = json.loads(json.dumps(self.facts))  # through the browser's store
        now = self.collector.clock.now()
        view = self.does(lambda client: view_control(client, facts, now))
        self.facts = view.facts
        drawn = zip(PARTS, view.parts, strict=True)
        return {place: repr(part) for place, part in drawn if part is not no_update}


@pytest.fixture
def screen(ask, start_collector):
    return Screen(ask, start_collector())


def test_the_first_time_everything_is_drawn_and_then_nothing(screen):
    assert set(screen.renew()) == set(PARTS)
    for _ in range(3):
        screen.collector.clock.advance(30)
        assert screen.renew() == {}


def test_time_that_passes_changes_no_part_with_a_moment_in_it(screen, make_job):
    job = make_job(screen.collector)
    fields = SilenceFields(rule=ALL_RULES, end="minutes", minutes=60)
    now = screen.collector.clock.now()
    screen.does(lambda c: set_armed(c, True, "a fire"))
    assert screen.does(lambda c: silence_rule(c, job.run_id, fields, "known", now)).done
    assert {"a fire", "known"} <= set(re.findall("a fire|known", str(screen.renew())))
    screen.collector.clock.advance(timedelta(minutes=5).total_seconds())
    assert screen.renew() == {}


def test_something_that_was_done_changes_the_log_and_leaves_the_switch(screen, make_job):
    screen.renew()
    job = make_job(screen.collector)
    screen.does(lambda c: change_mode(c, job.run_id, "observe", "my watch"))
    changed = screen.renew()
    assert set(changed) == {ids.CONTROL_AUDIT}
    assert "my watch" in changed[ids.CONTROL_AUDIT]
    assert screen.renew() == {}


def test_disarming_updates_the_card_and_its_facts(screen):
    screen.renew()
    assert screen.facts["disarmed"] is False
    screen.does(lambda c: set_armed(c, True, "a fire"))
    changed = screen.renew()
    assert set(changed) == {ids.CONTROL_STATE, ids.CONTROL_AUDIT}
    assert "a fire" in changed[ids.CONTROL_STATE]
    assert screen.facts["disarmed"] is True


def test_what_is_kept_in_the_browser_is_small_however_long_the_log(screen, make_job):
    job = make_job(screen.collector)
    for number in range(30):
        mode = "observe" if number % 2 else "auto"
        screen.does(lambda c, to=mode: change_mode(c, job.run_id, to, "x" * 500))
    screen.renew()
    assert len(json.dumps(screen.facts)) < 300


def test_unavailable_collector_and_recovery(screen):
    screen.renew()
    screen.collector.stop()
    with pytest.raises(CollectorUnavailableError):
        screen.renew()
    screen.collector.start()
    assert screen.renew() == {}
