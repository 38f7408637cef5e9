"""A later process delivers what an earlier one has left in the spool."""

import pytest

from stabilizer.agent.telemetry.session import Ending


def die(desk):
    """End a process without the network; what it has goes to disk."""
    desk.sender.ending = Ending(None, desk.clock.monotonic())
    for _ in range(3):
        desk.sender.turn()
    assert desk.sender.is_finished


def test_process_that_never_reached_the_collector_is_delivered_by_the_next(
    make_desk, collector, kit, settings
):
    first = make_desk(kit.make_register(start_step=3))
    collector.faults.append(kit.gone)
    first.put(3, 4)
    first.later(0.1)
    first.begin(from_step=2)
    first.put(3)
    die(first)
    collector.faults.clear()
    second = make_desk(kit.make_register(start_step=10))
    second.put(11)
    second.later(0.1)
    assert [message.start_step for message in collector.registers] == [10]
    assert collector.steps == [(1, 11), (2, 3), (2, 4), (3, 3)]
    starts = [batch.header.attempt_start for batch in collector.stored.values()]
    assert {start.origin_id for start in starts[1:]} == {first.context.attempt.id}
    assert starts[2].parent_id == first.context.attempt.id
    assert list(settings.spool_directory.rglob("*.spool")) == []


def test_history_waits_until_the_new_process_is_reported(make_desk, collector, kit):
    first = make_desk()
    first.run()
    collector.faults.append(kit.gone)
    first.put(1, 2)
    first.later(0.1)
    die(first)
    collector.faults.clear()
    second = make_desk()
    second.put(5)
    second.later(0.1)
    assert collector.steps == [(2, 5), (1, 1), (1, 2)]


def test_results_of_a_dead_process_are_delivered(make_desk, collector, kit):
    first = make_desk()
    first.run()
    collector.faults.append(kit.gone)
    first.event(kit.make_result("c9"))
    first.run()
    die(first)
    collector.faults.clear()
    make_desk().run()
    assert [result.command_id for result in collector.results] == ["c9"]


def test_catalogs_of_a_dead_process_are_sent_with_its_frames(make_desk, collector, kit):
    first = make_desk()
    collector.faults.append(kit.gone)
    first.put(1, catalog=kit.OTHER)
    first.later(0.1)
    die(first)
    collector.faults.clear()
    make_desk().run()
    assert collector.steps == [(2, 1)]


def test_crash_while_draining_loses_and_doubles_nothing(make_desk, collector, kit):
    first = make_desk()
    first.run()
    collector.faults.append(kit.gone)
    for step in range(40):
        first.put(step)
        first.later(0.1)
    die(first)
    collector.faults.clear()
    second = make_desk()
    for _ in range(20):
        second.sender.turn()
    second.sender._spool.close()  # its locks go with the process
    assert 0 < len(collector.steps) < 40
    make_desk().run(turns=200)
    assert collector.steps == [(1, step) for step in range(40)]


def test_run_that_is_gone_takes_its_history_along(make_desk, collector, kit):
    first = make_desk()
    first.run()
    collector.faults.append(kit.gone)
    first.put(1)
    first.later(0.1)
    die(first)
    collector.faults.clear()
    collector.run_id = "run-2"
    second = make_desk()
    second.put(2)
    second.later(0.1)
    assert collector.steps == [(2, 2)]
    assert second.context.counters.health.frames_dropped == 1


@pytest.mark.parametrize("status", [422, 500])
def test_records_that_nobody_takes_do_not_hold_the_new_process_up(
    make_desk, collector, kit, status
):
    first = make_desk()
    collector.faults.append(kit.gone)
    first.put(1)
    first.later(0.1)
    die(first)
    collector.faults[:] = [
        lambda request: (
            kit.problem(status, "some_code") if request.path.endswith("frames") else None
        )
    ]
    second = make_desk()
    for _ in range(20):
        second.later(30)
    assert second.sender.is_connected
    assert second.context.counters.health.frames_dropped == 1
