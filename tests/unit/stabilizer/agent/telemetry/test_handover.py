"""What the training thread touches: buffer, batches, the reporter itself."""

import threading
from dataclasses import replace
from itertools import zip_longest

import numpy as np
import pytest

from stabilizer.agent.telemetry.failures import Counters
from stabilizer.agent.telemetry.outbox import (
    MAX_MARKERS,
    Batcher,
    Buffer,
    JobState,
    Outbox,
    ReporterContext,
)
from stabilizer.agent.telemetry.reporter import Reporter
from stabilizer.clock import SystemClock
from stabilizer.errors import ConfigurationError, TelemetryError
from stabilizer.protocol.batches import Marker, MarkerKind
from stabilizer.protocol.frames import FrameBlock, decode_batch
from stabilizer.protocol.runs import ResumedFrom, RunState


class TestBuffer:
    @pytest.fixture
    def counters(self):
        return Counters()

    @pytest.fixture
    def buffer(self, counters):
        return Buffer(3, counters)

    def test_oldest_frames_give_way_and_are_counted(self, buffer, counters):
        for number in range(5):
            buffer.put_frames(number, 1, 0.0)
        assert [entry.content for entry in buffer.take(10)] == [2, 3, 4]
        assert counters.health.frames_dropped == 2

    def test_notes_outlive_dropped_frames_and_keep_their_place(self, buffer, kit):
        note = kit.make_result()
        buffer.put_frames(0, 1, 0.0)
        buffer.put_event(note, 1, 0.0)
        for number in range(1, 4):
            buffer.put_frames(number, 1, 0.0)
        assert [entry.content for entry in buffer.take(10)] == [note, 1, 2, 3]

    def test_limit_counts_frames_only(self, buffer, kit):
        buffer.put_frames(0, 1, 0.0)
        buffer.put_event(kit.make_result(), 1, 0.0)
        buffer.put_frames(1, 1, 0.0)
        assert len(buffer.take(1)) == 2
        assert len(buffer.take(1)) == 1
        assert buffer.take(1) == []

    def test_put_from_a_signal_handler_does_not_lock_up(self, buffer):
        with buffer._condition:  # as if a signal had come in the middle of a put
            buffer.put_frames(0, 1, 0.0)
        assert buffer.num_frames == 1

    def test_wait_ends_at_once_for_a_change_of_state(self, buffer):
        buffer.put_state(JobState(RunState.PAUSED, 1))
        buffer.wait(3600.0, 100)
        assert buffer.has_new_state

    def test_wait_ends_when_enough_frames_wait(self, buffer):
        waiting = threading.Thread(target=buffer.wait, args=(3600.0, 2))
        waiting.start()
        while waiting.is_alive():
            buffer.put_frames(0, 1, 0.0)
            waiting.join(0.01)
        assert buffer.num_frames >= 2


class TestBatcher:
    @pytest.fixture
    def context(self, settings, clock, first):
        counters = Counters()
        return ReporterContext(
            settings=settings,
            clock=clock,
            buffer=Buffer(100, counters),
            counters=counters,
            attempt=first,
        )

    @pytest.fixture
    def first(self, kit):
        return kit.make_attempt()

    @pytest.fixture
    def batches(self, context, first):
        """Hand contents over, all in one attempt unless given, and get the batches made of them."""

        def make(*contents, attempts=(), num_steps=16):
            batcher = Batcher(context)
            for content, attempt in zip_longest(contents, attempts, fillvalue=first):
                put = getattr(content, "blocks", None)
                (context.buffer.put_frames if put else context.buffer.put_event)(
                    content, attempt, 0.0
                )
            records = []
            for item in context.buffer.take(100):
                records += batcher.add(item, num_steps)
            return [decode_batch(record.payload) for record in records + batcher.flush()]

        return make

    def test_frames_of_a_catalog_share_a_block(self, batches, kit):
        (batch,) = batches(kit.Pending(1), kit.Pending(2), kit.Pending(3, kit.OTHER))
        assert [block.steps.tolist() for block in batch.blocks] == [[1, 2], [3]]
        assert batch.blocks[0].values.tolist() == [[1, 1], [2, 2]]

    def test_masks_and_whole_frames_mix(self, batches, kit):
        sparse = kit.Pending(2)
        catalog, block = sparse.blocks()[0]
        mask = np.array([[True, False]])
        sparse.blocks = lambda: [(catalog, replace(block, present=mask))]
        (batch,) = batches(kit.Pending(1), sparse)
        assert batch.blocks[0].present.tolist() == [[True, True], [True, False]]

    def test_values_that_are_not_finite_arrive(self, batches, kit):
        frames = kit.Pending(1)
        catalog, block = frames.blocks()[0]
        odd = np.array([[np.nan, -np.inf]], np.float32)
        frames.blocks = lambda: [(catalog, replace(block, values=odd))]
        (batch,) = batches(frames)
        np.testing.assert_array_equal(batch.blocks[0].values, odd)

    def test_sequence_restarts_with_each_attempt(self, batches, first, kit):
        second = kit.make_attempt(from_step=1)
        made = batches(
            *(kit.Pending(step) for step in range(3)),
            second,
            *(kit.Pending(step) for step in range(3)),
            attempts=[*[first] * 3, *[second] * 4],
            num_steps=2,
        )
        heads = [(batch.header.attempt_id, batch.header.sequence) for batch in made]
        assert heads == [(first.id, 0), (first.id, 1), (second.id, 0), (second.id, 1)]
        starts = [batch.header.attempt_start for batch in made]
        assert starts == [first.start, first.start, second.start, second.start]

    def test_steps_that_go_back_begin_another_batch(self, batches, kit):
        made = batches(kit.Pending(5), kit.Pending(4), kit.Pending(4))
        assert [batch.blocks[0].steps.tolist() for batch in made] == [[5], [4, 4]]

    def test_nothing_measured_makes_no_batch(self, batches, kit):
        empty = kit.Pending(1)
        catalog, block = empty.blocks()[0]
        none = FrameBlock(catalog.id, block.steps[:0], block.times[:0], block.values[:0])
        empty.blocks = lambda: [(catalog, none)]
        assert batches(empty) == []

    def test_large_steps_fill_a_batch(self, batches, context, kit, settings):
        object.__setattr__(context, "settings", replace(settings, batch_bytes=16))
        made = batches(*(kit.Pending(step) for step in range(4)))
        assert [len(batch.blocks[0]) for batch in made] == [2, 2]

    def test_flood_of_markers_is_spread(self, context, first):
        marker = Marker(kind=MarkerKind.LR_CHANGE, step=1)
        context.buffer.take(0)
        batcher = Batcher(context)
        records = []
        for _ in range(MAX_MARKERS + 1):
            context.buffer.put_event(marker, first, 0.0)
            for entry in context.buffer.take(1):
                records += batcher.add(entry, 16)
        assert len(records + batcher.flush()) == 2


class TestOutbox:
    @pytest.fixture
    def make_outbox(self, make_spool, settings, clock, kit):
        """Build an outbox over a spool, and a function that hands over steps and collects them."""

        def make(**changes):
            spool = make_spool(**changes)
            context = ReporterContext(
                settings=settings,
                clock=clock,
                buffer=Buffer(100, spool.counters),
                counters=spool.counters,
                attempt=kit.make_attempt(),
            )
            outbox = Outbox(context, Batcher(context), spool, lambda: spool.info)

            def collect(*steps, now, is_away):
                for step in steps:
                    context.buffer.put_frames(kit.Pending(step), context.attempt, now)
                outbox.collect(now, is_away=is_away, is_ending=True)

            return spool, outbox, collect

        return make

    def test_full_disk_keeps_the_order_and_is_tried_again(self, make_outbox, monkeypatch):
        spool, outbox, collect = make_outbox()
        collect(0, now=0.0, is_away=True)
        append, full = spool.append, True

        def fail(item):
            if full:
                raise TelemetryError("full", code="spool_failed")
            append(item)

        monkeypatch.setattr(spool, "append", fail)
        for number in range(1, 9):
            collect(number, now=1.0, is_away=True)
        assert outbox.seconds_to_due(1.0)[0] is None  # what comes now waits in the buffer
        assert spool.counters.health.send_failures == 1
        full = False
        collect(now=2.0, is_away=True)
        assert outbox.seconds_to_due(2.0)[0] is None
        collect(now=32.0, is_away=True)
        found = []
        while (head := outbox.head(33.0)) is not None:
            found += decode_batch(head.payload).blocks[0].steps.tolist()
            outbox.pop(head, 33.0)
        assert found == list(range(9))

    def test_end_without_a_disk_is_counted(self, make_outbox):
        spool, outbox, collect = make_outbox(spool_bytes=0)
        collect(0, now=0.0, is_away=False)
        outbox.close(0.0)
        assert spool.counters.health.frames_dropped == 1

    def test_disk_that_cannot_be_read_is_skipped_and_tried_again(self, make_outbox, monkeypatch):
        spool, outbox, collect = make_outbox()
        collect(0, now=0.0, is_away=True)

        def fail(*args):
            raise TelemetryError("unreadable", code="spool_failed")

        def step(now):
            return int(decode_batch(outbox.head(now).payload).blocks[0].steps[0])

        with monkeypatch.context() as broken:
            broken.setattr(spool, "append", fail)
            broken.setattr(spool, "head", fail)
            collect(1, now=1.0, is_away=True)
            assert step(1.0) == 1
        assert step(2.0) == 1
        assert step(32.0) == 0


class TestReporter:
    @pytest.fixture
    def make_reporter(self, collector, settings, kit):
        made = []

        def make(register=None, **changes):
            reporter = Reporter(
                "http://127.0.0.1:1",
                register or kit.make_register(),
                token=None,
                clock=SystemClock(),
                transport=collector,
                settings=replace(settings, **changes),
                on_answer=lambda answer: None,
            )
            made.append(reporter)
            return reporter

        yield make
        for reporter in made:
            reporter.close(RunState.FINISHED, 30.0)

    def test_start_returns_with_the_registration(self, make_reporter, collector):
        reporter = make_reporter(register_wait_seconds=30.0)
        assert (reporter.run_id, reporter.connected) == (None, False)
        reporter.start()
        assert (reporter.run_id, reporter.plan.every) == ("run-1", 5)

    def test_the_attempt_of_a_resumed_job_continues_that_of_its_checkpoint(
        self, make_reporter, collector, kit
    ):
        saved = kit.make_attempt().id
        register = kit.make_register(start_step=4, resumes=ResumedFrom(attempt_id=saved))
        reporter = make_reporter(register, register_wait_seconds=30.0)
        reporter.start()
        reporter.put(kit.Pending(5))
        reporter.close(RunState.FINISHED, 30.0)
        start = collector.stored[(1, 0)].header.attempt_start
        assert (start.from_step, start.parent_id) == (4, saved)
        assert start.origin_id == register.attempt_id

    def test_a_notice_of_the_collector_is_logged_once(self, make_reporter, collector, kit, caplog):
        collector.notice = "another live job has registered as 'a run'"
        reporter = make_reporter(register_wait_seconds=30.0)
        reporter.start()
        reporter.put(kit.Pending(1))
        reporter.close(RunState.FINISHED, 30.0)
        assert caplog.text.count(collector.notice) == 1

    def test_start_returns_on_a_refusal_without_waiting(self, make_reporter, collector, kit):
        collector.faults.append(lambda request: kit.problem(401, "unauthenticated"))
        make_reporter(register_wait_seconds=3600.0).start()
        assert collector.registers == []

    def test_mistake_in_the_sender_is_logged_and_survived(
        self, make_reporter, collector, kit, caplog
    ):
        reporter = make_reporter(register_wait_seconds=30.0, strict=False)
        reporter.start()
        reporter.put(kit.Pending(1, error=RuntimeError("the copy failed")))
        reporter.put(kit.Pending(2))
        reporter.close(RunState.FINISHED, 30.0)
        assert collector.steps == [(1, 2)]
        assert reporter.health.frames_dropped == 1
        assert "RuntimeError: the copy failed" in caplog.text

    def test_calls_before_start_and_after_close_do_no_harm(self, make_reporter, collector, kit):
        reporter = make_reporter(register_wait_seconds=30.0)
        reporter.put(kit.Pending(1))
        reporter.start()
        reporter.start()
        reporter.close(RunState.FINISHED, 30.0)
        reporter.start()
        reporter.put(kit.Pending(2))
        reporter.result(kit.make_result())
        reporter.close(RunState.FAILED, 30.0)
        assert collector.steps == [(1, 1)]
        assert len(collector.registers) == 1

    def test_close_out_of_an_answer_does_not_wait_for_itself(self, make_reporter, collector, kit):
        reporter = make_reporter(register_wait_seconds=30.0)
        reporter._on_answer = lambda answer: reporter.close(RunState.FINISHED, 3600.0)
        reporter.start()
        reporter.put(kit.Pending(1))
        reporter._thread.join(30.0)
        assert not reporter._thread.is_alive()
        assert collector.steps == [(1, 1)]

    def test_bad_address_is_said_at_once(self, kit):
        with pytest.raises(ConfigurationError, match="url is not usable"):
            Reporter(
                "localhost:8000",
                kit.make_register(),
                token=None,
                clock=SystemClock(),
                on_answer=lambda answer: None,
            )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_strict_sender_dies_of_a_mistake_and_training_goes_on(collector, settings, kit):
    reporter = Reporter(
        "http://127.0.0.1:1",
        kit.make_register(),
        token=None,
        clock=SystemClock(),
        transport=collector,
        settings=replace(settings, register_wait_seconds=30.0),
        on_answer=lambda answer: None,
    )
    reporter.start()
    reporter.put(kit.Pending(1, error=RuntimeError("the copy failed")))
    reporter._thread.join(30.0)
    assert not reporter._thread.is_alive()
    reporter.put(kit.Pending(2))
    reporter.close(RunState.FINISHED)
    reporter._sender._spool.close()
