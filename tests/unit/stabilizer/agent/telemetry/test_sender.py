"""The conversation with the collector, turn by turn."""

from dataclasses import replace

import pytest

from stabilizer.agent.telemetry.http import HttpResponse
from stabilizer.agent.telemetry.outbox import JobState
from stabilizer.agent.telemetry.session import Ending
from stabilizer.errors import TelemetryError
from stabilizer.protocol.batches import Marker, MarkerKind, SnapshotInfo
from stabilizer.protocol.frames import decode_batch
from stabilizer.protocol.runs import RunState


def end(desk, state=RunState.FINISHED, seconds=4.0):
    desk.sender.ending = Ending(state, desk.clock.monotonic() + seconds)
    desk.run()


class TestSending:
    def test_registers_first_and_tells_who_asks(self, desk, collector):
        desk.run()
        assert collector.names == ["runs"]
        assert desk.registered[0].run_id == "run-1"
        assert desk.sender.settled.is_set()
        assert desk.sender.is_connected

    def test_frames_linger_and_share_a_batch(self, desk, collector):
        desk.run()
        desk.put(1, 2, 3)
        desk.run()
        assert collector.names == ["runs"]
        desk.later(0.1)
        assert collector.names == ["runs", "frames"]
        assert collector.steps == [(1, 1), (1, 2), (1, 3)]

    def test_sixteen_steps_do_not_linger(self, desk, collector):
        desk.run()
        desk.put(*range(16))
        desk.run()
        assert len(collector.steps) == 16

    def test_answers_are_passed_on(self, desk):
        desk.put(1)
        desk.later(0.1)
        assert [answer.plan.every for answer in desk.answers] == [5]

    def test_result_does_not_linger_and_keeps_its_place(self, desk, collector, kit):
        desk.run()
        desk.put(1)
        desk.event(kit.make_result())
        desk.put(2)
        desk.run()
        assert collector.names == ["runs", "frames", "result", "frames"]
        assert collector.steps == [(1, 1), (1, 2)]

    def test_new_catalog_is_told_before_its_frames(self, desk, collector, kit):
        desk.run()
        desk.put(1, catalog=kit.OTHER)
        desk.later(0.1)
        assert collector.names == ["runs", "catalogs", "frames"]

    def test_unknown_catalog_is_told_again_and_the_batch_with_its_number(self, desk, collector):
        desk.run()
        collector.catalogs.clear()
        desk.put(1)
        desk.later(0.1)
        assert collector.names == ["runs", "frames", "catalogs", "frames"]
        assert list(collector.stored) == [(1, 0)]
        bodies = [request.body for request in collector.requests if "frames" in request.path]
        assert bodies[0] == bodies[1]

    def test_lost_answer_sends_the_same_batch_again(self, desk, collector):
        desk.run()
        desk.put(1)
        collector.loses_answers = True
        desk.later(0.1)
        collector.loses_answers = False
        desk.put(2)
        desk.later(30)
        assert list(collector.stored) == [(1, 0), (1, 1)]
        assert collector.steps == [(1, 1), (1, 2)]
        assert desk.answers[0].duplicate

    def test_marker_and_inventory_travel_without_frames(self, desk, collector):
        desk.run()
        desk.event(Marker(kind=MarkerKind.PHASE_CHANGE, step=3))
        info = SnapshotInfo(id="s1", attempt=1, step=3, finite=True)
        desk.context.buffer.put_snapshots((info,), desk.clock.monotonic())
        desk.later(0.1)
        header = collector.stored[(1, 0)].header
        assert header.markers[0].kind is MarkerKind.PHASE_CHANGE
        assert header.snapshots == (info,)

    def test_first_batch_clears_the_inventory_of_an_earlier_process(self, desk, collector):
        desk.run()
        desk.put(1)
        desk.later(0.1)
        desk.put(2)
        desk.later(0.1)
        assert [batch.header.snapshots for batch in collector.stored.values()] == [(), None]

    def test_counts_travel_when_they_change(self, desk, collector):
        desk.run()
        desk.context.counters.add(dropped=3)
        for step in (1, 2):
            desk.put(step)
            desk.later(0.1)
        health = [batch.header.health for batch in collector.stored.values()]
        assert health[0].frames_dropped == 3
        assert health[1] is None

    def test_silence_is_broken_by_heartbeats(self, desk, collector):
        desk.run()
        desk.put(4)
        desk.later(0.1)
        desk.later(9.0)
        assert collector.heartbeats == []
        desk.later(1.0)
        (beat,) = collector.heartbeats
        assert (beat.attempt_id, beat.step) == (desk.attempt.id, 4)


class TestAttempts:
    def test_new_attempt_is_reported_even_before_its_first_frame(self, desk, collector):
        desk.run()
        desk.put(10)
        desk.begin(from_step=5)
        desk.later(0.1)
        assert list(collector.stored) == [(1, 0), (2, 0)]
        first, second = (batch.header for batch in collector.stored.values())
        assert second.attempt_start.from_step == 5
        assert second.attempt_start.parent_id == first.attempt_id
        assert second.attempt_start.origin_id == first.attempt_id == desk.context.attempt.id

    def test_every_batch_says_where_its_attempt_begins(self, desk, collector):
        desk.run()
        desk.begin(from_step=5)
        desk.later(0.1)
        collector.attempts.pop()  # the collector has lost what it knew of the attempt
        desk.put(6)
        desk.later(0.1)
        assert collector.stored[(2, 1)].header.attempt_start.from_step == 5

    def test_ids_before_registration_stay(self, desk, collector, kit):
        collector.attempts = [f"{number:032x}" for number in range(6)]
        collector.faults.append(kit.gone)
        desk.put(1)
        desk.later(0.1)
        first = desk.attempt.id
        desk.begin(from_step=0)
        info = SnapshotInfo(id="s1", attempt=1, attempt_id=first, step=0, finite=True)
        desk.context.buffer.put_snapshots((info,), desk.clock.monotonic())
        desk.put(2)
        desk.later(0.1)
        collector.faults.clear()
        desk.later(60)
        assert collector.steps == [(7, 1), (8, 2)]
        header = collector.stored[(8, 0)].header
        assert header.attempt_start.parent_id == first
        assert header.snapshots == (info,)

    def test_heartbeats_name_the_newest_attempt_that_the_collector_knows(
        self, desk, collector, kit
    ):
        desk.run()
        first = desk.attempt.id
        desk.begin(from_step=0)
        collector.faults.append(
            lambda request: kit.problem(503, "busy") if request.path.endswith("frames") else None
        )
        desk.later(0.1)
        desk.context.buffer.put_state(JobState(RunState.PAUSED, 7))
        desk.later(60)
        collector.faults.clear()
        desk.later(60)
        desk.later(60)
        named = [beat.attempt_id for beat in collector.heartbeats]
        assert (named[0], named[-1]) == (first, desk.attempt.id)

    def test_run_that_is_gone_is_registered_anew(self, desk, collector):
        desk.run()
        desk.put(1)
        desk.later(0.1)
        collector.run_id, collector.attempts = "run-2", ["0" * 32]
        desk.put(2)
        desk.later(0.1)
        desk.later(30)
        assert [message.run_id for message in desk.registered] == ["run-1", "run-2"]
        assert [message.attempt_id for message in collector.registers] == [desk.attempt.id] * 2
        assert collector.steps == [(1, 1), (2, 2)]

    def test_lost_answer_to_the_registration_begins_no_second_attempt(self, desk, collector):
        collector.loses_answers = True
        desk.run()
        collector.loses_answers = False
        desk.put(1)
        desk.later(60)
        assert collector.attempts == [desk.attempt.id]
        assert collector.steps == [(1, 1)]


class TestTrouble:
    def test_frames_wait_for_a_collector_that_is_away_in_order(self, desk, collector, kit):
        collector.faults.append(kit.gone)
        for step in range(100):
            desk.put(step)
            desk.later(0.05)
        assert desk.context.counters.health.frames_spooled > 50
        assert not desk.sender.is_connected
        collector.faults.clear()
        desk.later(60)
        desk.later(1)
        assert collector.steps == [(1, step) for step in range(100)]
        assert desk.context.counters.health.frames_dropped == 0

    def test_tries_become_rare(self, desk, collector, kit):
        collector.faults.append(kit.gone)
        for _ in range(3600):
            desk.later(1.0)
        assert 3600 / 30 < len(collector.requests) < 3600 / 10

    @pytest.mark.parametrize(
        ("status", "code"), [(401, "unauthenticated"), (403, "forbidden"), (422, "invalid_rule")]
    )
    def test_refused_registration_is_tried_seldom_and_said_once(
        self, desk, collector, kit, caplog, status, code
    ):
        collector.faults.append(lambda request: kit.problem(status, code, "because"))
        for _ in range(1000):
            desk.later(1.0)
        assert 3 <= len(collector.requests) <= 5
        said = [record for record in caplog.records if record.levelname == "ERROR"]
        assert len(said) == 1
        assert "because" in said[0].getMessage()
        assert desk.sender.settled.is_set()

    @pytest.mark.parametrize("status", [400, 409, 413, 422])
    def test_batch_that_is_refused_for_good_makes_way(self, desk, collector, kit, status):
        desk.run()
        collector.faults.append(
            lambda request: (
                kit.problem(status, "catalog_mismatch")
                if request.path.endswith("frames")
                and decode_batch(request.body).header.sequence == 0
                else None
            )
        )
        for step in (1, 2):
            desk.put(step)
            desk.later(0.1)
        assert collector.steps == [(1, 2)]
        assert desk.context.counters.health.frames_dropped == 1
        assert desk.sender.is_connected

    def test_batch_that_breaks_the_collector_is_given_up_if_it_is_well_otherwise(
        self, desk, collector, kit, settings
    ):
        desk.run()
        collector.faults.append(
            lambda request: (
                kit.problem(500, "internal_error") if request.path.endswith("frames") else None
            )
        )
        desk.put(1)
        desk.later(0.1)
        for _ in range(settings.poison_tries):
            desk.later(30)
        assert desk.context.counters.health.frames_dropped == 1
        collector.faults.clear()
        desk.put(2)
        desk.later(60)
        assert collector.steps == [(1, 2)]

    def test_batch_is_kept_while_the_collector_is_broken_altogether(self, desk, collector, kit):
        desk.run()
        collector.faults.append(lambda request: kit.problem(500, "internal_error"))
        desk.put(1)
        for _ in range(100):
            desk.later(30)
        collector.faults.clear()
        desk.later(60)
        assert collector.steps == [(1, 1)]

    def test_retry_after_is_heard(self, desk, collector, kit):
        desk.run()
        collector.faults.append(lambda request: kit.problem(503, "storage_unavailable", "", 50.0))
        desk.put(1)
        desk.later(0.1)
        asked = len(collector.requests)
        desk.later(49.0)
        assert len(collector.requests) == asked
        desk.later(1.1)
        assert len(collector.requests) == asked + 1

    def test_frames_that_cannot_be_read_are_counted_and_the_others_go(self, desk, collector, kit):
        desk.run()
        desk.put(1)
        desk.put_frames(kit.Pending(2, error=RuntimeError("the copy failed")))
        desk.put(3)
        desk.clock.advance(0.1)
        with pytest.raises(RuntimeError, match="the copy failed") as caught:
            desk.sender.turn()
        desk.sender.crashed(caught.value)
        desk.later(1)
        assert collector.steps == [(1, 1), (1, 3)]
        assert desk.context.counters.health.frames_dropped == 1

    def test_frames_of_a_wrong_shape_are_counted(self, desk, kit):
        frames = kit.Pending(1)
        _, block = frames.blocks()[0]
        frames.blocks = lambda: [(kit.OTHER, replace(block, catalog=kit.OTHER.id))]
        desk.put_frames(frames)
        desk.clock.advance(1)
        with pytest.raises(TelemetryError, match=r"shape \(1, 2\); allowed: \(1, 1\)"):
            desk.sender.turn()
        assert desk.context.counters.health.frames_dropped == 1

    def test_callback_that_raises_does_not_send_twice(self, make_desk, collector):
        desk = make_desk()
        desk.run()

        def broken(answer):
            raise ValueError("a mistake in the job")

        desk.sender._on_answer = broken
        desk.put(1)
        desk.clock.advance(0.1)
        with pytest.raises(ValueError, match="a mistake in the job"):
            desk.sender.turn()
        desk.sender.crashed(ValueError())
        desk.sender._on_answer = desk.answers.append
        desk.put(2)
        desk.later(60)
        assert collector.names.count("frames") == 2

    def test_without_a_disk_frames_wait_in_memory(self, make_desk, collector, kit, settings):
        settings.spool_directory.write_text("not a folder")
        desk = make_desk(settings=replace(settings, buffer_steps=64))
        collector.faults.append(kit.gone)
        for step in range(300):
            desk.put(step)
            desk.later(0.05)
        collector.faults.clear()
        desk.later(60)
        desk.later(1)
        health = desk.context.counters.health
        steps = [step for _, step in collector.steps]
        assert len(steps) == 300 - health.frames_dropped
        assert steps == sorted(steps)
        assert steps[-64:] == list(range(236, 300))
        assert health.frames_spooled == 0

    def test_slow_collector_fills_the_spool_not_the_buffer(self, make_desk, collector, settings):
        desk = make_desk(settings=replace(settings, buffer_steps=64))
        desk.run()
        step = 0

        def slow(request):
            nonlocal step
            for _ in range(30):
                desk.put(step := step + 1)

        collector.faults.append(slow)
        desk.put(0)
        desk.clock.advance(0.1)
        for _ in range(20):
            desk.sender.turn()
        collector.faults.clear()
        desk.later(1)
        assert collector.steps == [(1, number) for number in range(step + 1)]
        assert desk.context.counters.health.frames_dropped == 0
        assert desk.context.counters.health.frames_spooled > 0


class TestPause:
    def test_paused_job_listens(self, desk, collector):
        desk.run()
        desk.context.buffer.put_state(JobState(RunState.PAUSED, 7, "by hand"))
        desk.sender.turn()
        desk.sender.turn()
        assert collector.heartbeats[-1].state is RunState.PAUSED
        assert collector.heartbeats[-1].step == 7
        assert collector.names[-1] == "next"
        query = f"attempt_id={desk.attempt.id}&wait=10&known="
        assert query in collector.requests[-1].path

    def test_polls_answered_at_once_do_not_spin(self, desk, collector):
        desk.run()
        desk.context.buffer.put_state(JobState(RunState.PAUSED, 7))
        desk.run()
        assert desk.sender.pause().seconds == pytest.approx(0.25)

    def test_news_of_the_job_break_the_poll_off(self, desk, collector, kit):
        desk.run()
        desk.context.buffer.put_state(JobState(RunState.PAUSED, 7))
        broken = []

        def hold(request):
            if "next" in request.path:
                broken.append(request.is_cancelled())
                desk.event(kit.make_result())
                broken.append(request.is_cancelled())
                return TelemetryError("broken off", code="cancelled")
            return None

        collector.faults.append(hold)
        desk.run()
        assert broken == [False, True]
        assert [result.command_id for result in collector.results] == ["c1"]
        assert desk.context.counters.health.send_failures == 0

    def test_state_is_told_again_until_it_arrives(self, desk, collector, kit):
        desk.run()
        collector.faults.append(kit.gone)
        desk.context.buffer.put_state(JobState(RunState.PAUSED, 7))
        desk.run()
        collector.faults.clear()
        desk.later(60)
        assert collector.heartbeats[0].state is RunState.PAUSED

    def test_heartbeats_go_on_while_paused(self, desk, collector):
        desk.run()
        desk.context.buffer.put_state(JobState(RunState.PAUSED, 7))
        for _ in range(40):
            desk.later(1.0)
        assert len(collector.heartbeats) >= 4


class TestEnd:
    def test_everything_is_sent_and_then_the_last_word(self, desk, collector):
        desk.run()
        desk.put(*range(40))
        end(desk)
        assert len(collector.steps) == 40
        assert collector.names[-1] == "heartbeat"
        assert collector.heartbeats[-1].state is RunState.FINISHED
        assert desk.sender.is_finished

    def test_what_cannot_be_sent_is_left_on_disk(self, desk, collector, kit, settings):
        collector.faults.append(kit.gone)
        desk.put(*range(40))
        desk.sender.ending = Ending(RunState.FAILED, desk.clock.monotonic() + 4)
        for _ in range(20):
            desk.sender.turn()
            desk.clock.advance(1.0)
        assert desk.sender.is_finished
        assert list(settings.spool_directory.rglob("*.spool"))
        assert desk.context.counters.health.frames_dropped == 0

    def test_without_a_disk_what_is_left_is_counted(self, make_desk, collector, kit, settings):
        desk = make_desk(settings=replace(settings, spool_bytes=0))
        collector.faults.append(kit.gone)
        desk.put(*range(40))
        desk.sender.ending = Ending(RunState.FAILED, desk.clock.monotonic())
        desk.sender.turn()
        assert desk.sender.is_finished
        assert desk.context.counters.health.frames_dropped == 40

    def test_refused_job_does_not_wait_at_its_end(self, desk, collector, kit):
        collector.faults.append(lambda request: kit.problem(401, "unauthenticated"))
        desk.run()
        end(desk)
        assert desk.sender.is_finished

    def test_end_told_early_waits_for_what_was_measured(self, desk, collector):
        desk.run()
        desk.put(1)
        desk.context.buffer.put_state(JobState(RunState.FINISHED, 1))
        desk.clock.advance(0.1)
        desk.run()
        assert collector.names == ["runs", "frames", "heartbeat"]

    def test_late_end_puts_the_whole_buffer_on_disk(self, make_desk, collector, kit, settings):
        desk = make_desk()
        desk.run()
        desk.sender.ending = Ending(RunState.FINISHED, desk.clock.monotonic())

        def more(request):
            raise AssertionError("nothing is sent after the end")

        collector.faults.append(more)
        desk.put(*range(500))
        desk.event(kit.make_result())
        desk.sender.turn()
        assert desk.sender.is_finished
        assert desk.context.counters.health.frames_spooled == 500
        assert collector.steps == []
        collector.faults.clear()
        make_desk().run()
        assert collector.steps == [(1, step) for step in range(500)]
        assert len(collector.results) == 1

    def test_unknown_ending_is_not_told(self, desk, collector):
        desk.run()
        desk.put(1)
        end(desk, state=None)
        assert collector.names == ["runs", "frames"]

    def test_garbage_answers_do_not_delay_the_end(self, desk, collector):
        collector.faults.append(lambda request: HttpResponse(200, b"<html>"))
        desk.sender.ending = Ending(RunState.FINISHED, desk.clock.monotonic() + 4)
        for _ in range(20):
            desk.sender.turn()
            desk.clock.advance(0.5)
        assert desk.sender.is_finished
