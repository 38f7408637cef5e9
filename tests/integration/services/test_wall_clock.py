"""Rules on wall-clock time: ticks are recorded where they matter, and decide the same again."""

import numpy as np
import pytest

from stabilizer.cli.stored_runs import stored_steps
from stabilizer.collector.storage.repositories import Repositories
from stabilizer.protocol.decisions import AlertState
from stabilizer.protocol.runs import Heartbeat
from stabilizer.replay.job import replay
from stabilizer.rules.loader import load_rules

CLOCKS = """
  - name: stalled
    clock: {stalled_for: 10m}
    severity: notice
  - name: lost
    clock: {lost_for: 2h}
    severity: notice
  - name: behind
    clock: {collector_behind: 1h}
    severity: notice
policy:"""


@pytest.fixture
def rules(make):
    return make.rules.replace("\npolicy:", CLOCKS)


@pytest.fixture
def run_id(services, make, rules):
    return services.runs.register(make.register(policy=rules)).run_id


def send(services, make, run_id, clock, sequence, steps, *, age=0.0):
    block = make.block(np.arange(*steps))
    block.times[:] = clock.now().timestamp() - age
    services.ingest.accept(run_id, make.batch(sequence, blocks=[block]))


def alerts(services, run_id):
    found = services.queries.alerts(run_id)
    return sorted((a.rule, str(a.state)) for a in found if a.rule != "no_sign_of_life")


def test_a_run_that_reports_without_a_step_is_stalled(services, run_id, make, clock):
    send(services, make, run_id, clock, 0, (1, 11))
    for _ in range(11):
        clock.advance(60)
        services.runs.heartbeat(run_id, Heartbeat(attempt=1, step=10))
        services.runs.sweep_clocks()
    assert alerts(services, run_id) == [("stalled", "firing")]
    send(services, make, run_id, clock, 1, (11, 21))
    assert alerts(services, run_id) == [("stalled", "resolved")]
    assert services.queries.incidents(run_id) == []


def test_a_paused_run_is_not_stalled(services, run_id, make, clock):
    send(services, make, run_id, clock, 0, (1, 11))
    services.runs.heartbeat(run_id, Heartbeat(attempt=1, step=10, state="paused"))
    clock.advance(3600)
    services.runs.sweep_lost()
    services.runs.sweep_clocks()
    assert alerts(services, run_id) == []


def test_a_lost_run(services, run_id, make, clock):
    send(services, make, run_id, clock, 0, (1, 11))
    clock.advance(7201)
    services.runs.sweep_lost()
    services.runs.sweep_clocks()
    assert alerts(services, run_id) == [("lost", "firing"), ("stalled", "firing")]
    services.runs.register(make.register(policy=make.rules.replace("\npolicy:", CLOCKS)))
    services.runs.heartbeat(run_id, Heartbeat(attempt=2, step=0))
    assert alerts(services, run_id) == [("lost", "resolved"), ("stalled", "resolved")]


def test_frames_that_come_late(services, run_id, make, clock):
    send(services, make, run_id, clock, 0, (1, 11), age=4000)
    assert alerts(services, run_id) == [("behind", "firing")]
    send(services, make, run_id, clock, 1, (11, 21), age=30)
    assert alerts(services, run_id) == [("behind", "resolved")]


def test_a_clock_that_jumps_back_is_no_delay(services, run_id, make, clock):
    send(services, make, run_id, clock, 0, (1, 11), age=-9e6)
    clock.advance(-5000)
    services.runs.sweep_clocks()
    assert alerts(services, run_id) == []


def test_the_time_in_which_no_collector_listened_does_not_count(
    services, run_id, make, clock, open_services
):
    send(services, make, run_id, clock, 0, (1, 11))
    services.close()
    clock.advance(9000)
    again = open_services()
    again.runs.sweep_clocks()
    assert alerts(again, run_id) == []
    clock.advance(601)
    again.runs.sweep_clocks()
    assert alerts(again, run_id) == [("stalled", "firing")]


def test_ticks_that_change_nothing_are_not_recorded(services, run_id, make, clock):
    send(services, make, run_id, clock, 0, (1, 11))
    for _ in range(20):
        clock.advance(60)
        services.runs.sweep_clocks()
    send(services, make, run_id, clock, 1, (11, 21))
    with services.database.reading() as session:
        ticks = Repositories(session).rules.ticks(run_id)
    assert [(tick.step, tick.stalled) for tick in ticks] == [(10, 600.0), (20, 0.0)]


def test_a_restart_and_a_replay_decide_the_same(
    services, run_id, make, clock, open_services, rules
):
    send(services, make, run_id, clock, 0, (1, 11))
    clock.advance(900)
    services.runs.sweep_clocks()
    services.close()
    again = open_services()
    assert alerts(again, run_id) == [("stalled", "firing")]
    clock.advance(60)
    send(again, make, run_id, clock, 1, (11, 21))
    assert alerts(again, run_id) == [("stalled", "resolved")]
    with again.database.reading() as session:
        result = replay(stored_steps(Repositories(session), run_id), load_rules(rules))
    [live] = again.queries.alerts(run_id, AlertState.RESOLVED)
    [span] = result.alerts
    assert (span.rule, span.step, span.resolved_step) == ("stalled", 10, 20)
    assert (live.firing_step, live.resolved_step) == (10, 20)
