"""What the training thread touches: buffer, numbers of attempts, batches, the reporter itself."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from stabilizer.agent.telemetry.attempts import AttemptBook, SnapshotNumbers, Start, move_start
from stabilizer.agent.telemetry.batcher import MAX_MARKERS, Batcher
from stabilizer.agent.telemetry.buffer import Buffer, Context, StateChange
from stabilizer.agent.telemetry.counters import Counters
from stabilizer.agent.telemetry.reporter import Reporter
from stabilizer.clock import SystemClock
from stabilizer.errors import ConfigurationError
from stabilizer.protocol.batches import AttemptStart, Marker, MarkerKind, SnapshotInfo
from stabilizer.protocol.frames import FrameBlock, decode_batch
from stabilizer.protocol.runs import RunState


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
        buffer.put_note(note, 1, 0.0)
        for number in range(1, 4):
            buffer.put_frames(number, 1, 0.0)
        assert [entry.content for entry in buffer.take(10)] == [note, 1, 2, 3]

    def test_limit_counts_frames_only(self, buffer, kit):
        buffer.put_frames(0, 1, 0.0)
        buffer.put_note(kit.make_result(), 1, 0.0)
        buffer.put_frames(1, 1, 0.0)
        assert len(buffer.take(1)) == 2
        assert len(buffer.take(1)) == 1
        assert buffer.take(1) == []

    def test_put_from_a_signal_handler_does_not_lock_up(self, buffer):
        with buffer._condition:  # as if a signal had come in the middle of a put
            buffer.put_frames(0, 1, 0.0)
        assert buffer.num_frames == 1

    def test_wait_ends_at_once_for_a_change_of_state(self, buffer):
        buffer.put_state(StateChange(RunState.PAUSED, 1))
        buffer.wait(3600.0, 100)
        assert buffer.has_new_state

    def test_wait_ends_when_enough_frames_wait(self, buffer):
        waiting = threading.Thread(target=buffer.wait, args=(3600.0, 2))
        waiting.start()
        while waiting.is_alive():
            buffer.put_frames(0, 1, 0.0)
            waiting.join(0.01)
        assert buffer.num_frames >= 2


class TestNumbers:
    def test_base_moves_the_count(self):
        book = AttemptBook()
        assert (book.number, book.begin(), book.number) == (1, 2, 2)
        book.set_base(7)
        assert (book.number, book.local) == (8, 2)

    def test_snapshot_keeps_the_attempt_in_which_it_was_taken(self):
        def info(name, attempt):
            return SnapshotInfo(id=name, attempt=attempt, step=1, finite=True)

        numbers = SnapshotNumbers()
        first = numbers.to_local([info("a", 1), info("b", 2)], base=1)
        assert [item.attempt for item in first] == [1, 2]
        # Registered since: base 2, so that number 2 could be mistaken for the first attempt.
        second = numbers.to_local([info("b", 2), info("c", 3)], base=2)
        assert [item.attempt for item in second] == [2, 2]
        assert numbers.to_local([info("a", 5)], base=5)[0].attempt == 1

    @pytest.mark.parametrize(("parent", "moved"), [(None, None), (1, 5), (5, 5), (6, 6)])
    def test_parent_numbered_before_registration_is_recognised(self, parent, moved):
        start = Start.given(AttemptStart(from_step=1, parent=parent), 5)
        assert move_start(start.start, start.base, 5).parent == moved

    @pytest.mark.parametrize(
        ("parent", "old", "new", "moved"),
        [(None, 1, 5, None), (2, 1, 5, 6), (3, 5, 5, 3), (3, 5, 1, None), (6, 5, 1, 2)],
    )
    def test_parent_moves_with_the_base(self, parent, old, new, moved):
        start = AttemptStart(from_step=1, parent=parent)
        assert move_start(start, old, new).parent == moved


class TestBatcher:
    @pytest.fixture
    def context(self, settings, clock):
        counters = Counters()
        return Context(
            settings=settings,
            clock=clock,
            buffer=Buffer(100, counters),
            book=AttemptBook(),
            counters=counters,
        )

    @pytest.fixture
    def batches(self, context):
        """Hand contents over as (attempt, content) and get the batches that are made of them."""

        def make(*contents, num_steps=16):
            batcher = Batcher(context)
            for attempt, content in contents:
                put = getattr(content, "blocks", None)
                (context.buffer.put_frames if put else context.buffer.put_note)(
                    content, attempt, 0.0
                )
            records = []
            for entry in context.buffer.take(100):
                records += batcher.add(entry, num_steps)
            return [decode_batch(item.payload) for item in records + batcher.flush()]

        return make

    def test_frames_of_a_catalog_share_a_block(self, batches, kit):
        (batch,) = batches((1, kit.Pending(1)), (1, kit.Pending(2)), (1, kit.Pending(3, kit.OTHER)))
        assert [block.steps.tolist() for block in batch.blocks] == [[1, 2], [3]]
        assert batch.blocks[0].values.tolist() == [[1, 1], [2, 2]]

    def test_masks_and_whole_frames_mix(self, batches, kit):
        sparse = kit.Pending(2)
        catalog, block = sparse.blocks()[0]
        mask = np.array([[True, False]])
        sparse.blocks = lambda: [(catalog, replace(block, present=mask))]
        (batch,) = batches((1, kit.Pending(1)), (1, sparse))
        assert batch.blocks[0].present.tolist() == [[True, True], [True, False]]

    def test_values_that_are_not_finite_arrive(self, batches, kit):
        frames = kit.Pending(1)
        catalog, block = frames.blocks()[0]
        odd = np.array([[np.nan, -np.inf]], np.float32)
        frames.blocks = lambda: [(catalog, replace(block, values=odd))]
        (batch,) = batches((1, frames))
        np.testing.assert_array_equal(batch.blocks[0].values, odd)

    def test_sequence_begins_anew_with_each_attempt(self, batches, kit):
        start = Start(start=AttemptStart(from_step=1), base=1)
        made = batches(
            *((1, kit.Pending(step)) for step in range(3)),
            (2, start),
            *((2, kit.Pending(step)) for step in range(3)),
            num_steps=2,
        )
        heads = [(batch.header.attempt, batch.header.sequence) for batch in made]
        assert heads == [(1, 0), (1, 1), (2, 0), (2, 1)]
        assert [batch.header.attempt_start is not None for batch in made] == [
            False,
            False,
            True,
            False,
        ]

    def test_steps_that_go_back_begin_another_batch(self, batches, kit):
        made = batches((1, kit.Pending(5)), (1, kit.Pending(4)), (1, kit.Pending(4)))
        assert [batch.blocks[0].steps.tolist() for batch in made] == [[5], [4, 4]]

    def test_nothing_measured_makes_no_batch(self, batches, kit):
        empty = kit.Pending(1)
        catalog, block = empty.blocks()[0]
        none = FrameBlock(catalog.id, block.steps[:0], block.times[:0], block.values[:0])
        empty.blocks = lambda: [(catalog, none)]
        assert batches((1, empty)) == []

    def test_large_steps_fill_a_batch(self, batches, context, kit, settings):
        object.__setattr__(context, "settings", replace(settings, batch_bytes=16))
        made = batches(*((1, kit.Pending(step)) for step in range(4)))
        assert [len(batch.blocks[0]) for batch in made] == [2, 2]

    def test_flood_of_markers_is_spread(self, batches, context):
        marker = Marker(kind=MarkerKind.LR_CHANGE, step=1)
        context.buffer.take(0)
        batcher = Batcher(context)
        records = []
        for _ in range(MAX_MARKERS + 1):
            context.buffer.put_note(marker, 1, 0.0)
            for entry in context.buffer.take(1):
                records += batcher.add(entry, 16)
        assert len(records + batcher.flush()) == 2


class TestReporter:
    @pytest.fixture
    def make_reporter(self, collector, settings, kit):
        made = []

        def make(**changes):
            reporter = Reporter(
                "http://127.0.0.1:1",
                kit.make_register(),
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
        collector.newest_attempt = 4
        reporter = make_reporter(register_wait_seconds=30.0)
        assert (reporter.attempt, reporter.run_id, reporter.connected) == (1, None, False)
        reporter.start()
        assert (reporter.attempt, reporter.run_id, reporter.plan.every) == (5, "run-1", 5)
        assert reporter.begin_attempt(AttemptStart(from_step=3, parent=5)) == 6

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
        reporter._tell = lambda answer: reporter.close(RunState.FINISHED, 3600.0)
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
