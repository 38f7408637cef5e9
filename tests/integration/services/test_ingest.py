import threading

import numpy as np
import pytest

from stabilizer.collector.storage.models import AttemptRow, MarkerRow, RunRow
from stabilizer.collector.storage.repositories import Repositories
from stabilizer.errors import ConflictError, InvalidInputError, NotFoundError
from stabilizer.protocol.batches import AgentHealth, JsonBatch, Marker
from stabilizer.protocol.decisions import AlertState
from stabilizer.protocol.frames import FrameBlock
from stabilizer.protocol.queries import SeriesQuery
from stabilizer.protocol.runs import CatalogsAdd
from stabilizer.protocol.series import Catalog


@pytest.fixture
def steps_of(services, run_id):
    def read(series="loss", attempt=None):
        query = SeriesQuery(series=(series,), attempt=attempt)
        return {data.attempt: list(data.steps) for data in services.queries.read(run_id, query)}

    return read


def refused(services, run_id, batch, error, code):
    """Check the refusal, and that nothing of the batch is there."""
    before = services.queries.audit(run_id), services.runs.get(run_id)
    with pytest.raises(error) as caught:
        services.ingest.accept(run_id, batch)
    assert caught.value.code == code
    assert (services.queries.audit(run_id), services.runs.get(run_id)) == before
    return caught.value


class TestSequences:
    def test_a_batch_twice_is_stored_once(self, services, run_id, make, steps_of):
        batch = make.batch(0, [1, 2])
        first = services.ingest.accept(run_id, batch)
        again = services.ingest.accept(run_id, batch)
        assert (first.duplicate, again.duplicate) == (False, True)
        assert (first.accepted_sequence, again.accepted_sequence) == (0, 0)
        assert steps_of() == {1: [1, 2]}

    def test_a_gap_is_taken_and_counted(self, services, run_id, make):
        services.ingest.accept(run_id, make.batch(0, [1]))
        answer = services.ingest.accept(run_id, make.batch(5, [6]))
        assert answer.accepted_sequence == 5
        with services.database.reading() as session:
            row = session.get(AttemptRow, (run_id, 1))
            assert row.accepted_sequence + 1 - row.num_batches == 4

    def test_a_late_batch_is_shown_in_its_place(self, services, run_id, make, steps_of):
        services.ingest.accept(run_id, make.batch(1, [3, 4]))
        answer = services.ingest.accept(run_id, make.batch(0, [1, 2]))
        assert answer.accepted_sequence == 1
        assert steps_of() == {1: [1, 2, 3, 4]}
        assert services.runs.get(run_id).step == 4

    def test_rules_never_go_back(self, services, run_id, make):
        services.ingest.accept(run_id, make.batch(1, [10, 11]))
        services.ingest.accept(run_id, make.batch(0, range(1, 9), 99.0))  # would fire, had it come
        assert services.queries.alerts(run_id) == []

    def test_a_resolved_alert_shows_the_sample_that_made_it_fire(self, services, run_id, make):
        services.ingest.accept(run_id, make.batch(0, range(1, 4), 99.0))
        (firing,) = services.queries.alerts(run_id, AlertState.FIRING)
        services.ingest.accept(run_id, make.batch(1, range(4, 9), 1.0))
        (resolved,) = services.queries.alerts(run_id, AlertState.RESOLVED)
        assert resolved.resolved_step is not None
        assert (resolved.value, resolved.score, resolved.threshold) == (99.0, firing.score, 10.0)

    def test_two_threads_with_one_batch_store_it_once(self, services, run_id, make, steps_of):
        batch = make.batch(0, range(1, 20), 99.0)
        answers, barrier = [], threading.Barrier(4)

        def post():
            barrier.wait(10)
            answers.append(services.ingest.accept(run_id, batch))

        threads = [threading.Thread(target=post) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(answer.duplicate for answer in answers) == [False, True, True, True]
        assert steps_of() == {1: list(range(1, 20))}
        assert len(services.queries.incidents(run_id)) == 1

    def test_runs_in_many_threads_do_not_meet(self, services, make):
        ids = [services.runs.register(make.register(name=f"run {i}")).run_id for i in range(4)]

        def post(run_id):
            for sequence in range(6):
                services.ingest.accept(run_id, make.batch(sequence, [sequence + 1], 99.0))

        threads = [threading.Thread(target=post, args=(run_id,)) for run_id in ids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        found = [[c.parameters.kind for c in services.commands.list(run_id)] for run_id in ids]
        assert found == [["reduce_lr"]] * 4

    def test_an_empty_batch_is_a_sign_of_life(self, services, run_id, make, clock):
        clock.advance(5)
        answer = services.ingest.accept(run_id, make.batch(0))
        assert answer.accepted_sequence == 0
        assert services.runs.get(run_id).last_seen_at == clock.now()


class TestRefusals:
    @pytest.fixture(params=["sqlite"])
    def backend(self, request):
        return request.param

    def test_an_unknown_run(self, services, make):
        with pytest.raises(NotFoundError) as caught:
            services.ingest.accept("nobody", make.batch(0, [1]))
        assert caught.value.code == "unknown_run"

    def test_a_catalog_that_was_not_sent(self, services, run_id, make):
        other = Catalog.of(["other"])
        blocks = [make.block([1]), make.block([1], catalog=other)]
        batch = make.batch(0, blocks=blocks)
        refused(services, run_id, batch, ConflictError, "unknown_catalog")

    def test_a_block_of_another_width(self, services, run_id, make):
        block = make.block([1], values=np.ones((1, 3)))
        error = refused(
            services, run_id, make.batch(0, blocks=[block]), InvalidInputError, "catalog_mismatch"
        )
        assert (error.field, error.allowed) == ("blocks.0.values", "2 values in each frame")

    def test_steps_that_descend(self, services, run_id, make):
        batch = make.batch(0, [5, 6, 4])
        error = refused(services, run_id, batch, InvalidInputError, "step_out_of_order")
        assert (error.field, error.value) == ("blocks.0.steps.2", 4)

    def test_steps_before_the_attempt(self, services, make):
        run_id = services.runs.register(make.register(start_step=100)).run_id
        batch = make.batch(0, [99, 100])
        error = refused(services, run_id, batch, InvalidInputError, "step_out_of_order")
        assert (error.value, error.allowed) == (99, "at least 100, where the attempt began")

    @pytest.mark.parametrize("step", [-1, 2**53 + 1])
    def test_steps_that_are_none(self, services, run_id, make, step):
        batch = make.batch(0, [step])
        refused(services, run_id, batch, InvalidInputError, "step_out_of_order")

    def test_shapes_that_do_not_fit_together(self, services, run_id, make):
        good = make.block([1, 2])
        block = FrameBlock(good.catalog, good.steps[:1], good.times, good.values)
        batch = make.batch(0, blocks=[block])
        refused(services, run_id, batch, InvalidInputError, "malformed_batch")

    def test_times_that_are_none(self, services, run_id, make):
        good = make.block([1, 2])
        block = FrameBlock(good.catalog, good.steps, good.times * np.nan, good.values)
        batch = make.batch(0, blocks=[block])
        refused(services, run_id, batch, InvalidInputError, "malformed_batch")

    def test_a_snapshot_named_twice(self, services, run_id, make):
        batch = make.batch(0, [1], snapshots=(make.snapshot(1), make.snapshot(1)))
        refused(services, run_id, batch, InvalidInputError, "invalid_input")

    def test_an_attempt_that_nobody_began(self, services, run_id, make):
        batch = make.batch(0, [1], attempt=2)
        refused(services, run_id, batch, ConflictError, "unknown_attempt")

    def test_a_parent_from_the_future(self, services, run_id, make):
        start = make.rollback_start(0, parent=2)
        batch = make.batch(0, [1], attempt=2, attempt_start=start)
        refused(services, run_id, batch, InvalidInputError, "invalid_input")

    def test_a_good_batch_continues_after_a_bad_one(self, services, run_id, make, steps_of):
        services.ingest.accept(run_id, make.batch(0, [1]))
        with pytest.raises(InvalidInputError):
            services.ingest.accept(run_id, make.batch(1, [3, 2]))
        services.ingest.accept(run_id, make.batch(1, [2, 3]))
        assert steps_of() == {1: [1, 2, 3]}


class TestAttempts:
    def test_a_new_attempt_comes_with_its_start(self, services, run_id, make, steps_of):
        services.ingest.accept(run_id, make.batch(0, range(1, 31)))
        start = make.rollback_start(10, skipped_samples=40, command_id="c")
        answer = services.ingest.accept(
            run_id, make.batch(0, [11, 12], attempt=2, attempt_start=start)
        )
        run = services.runs.get(run_id)
        assert (answer.attempt, answer.accepted_sequence, run.attempt, run.step) == (2, 0, 2, 12)
        assert steps_of() == {1: list(range(1, 31)), 2: [11, 12]}
        second = run.attempts[1]
        assert (second.from_step, second.last_step, second.parent) == (10, 12, 1)
        assert (second.reason, second.skipped_samples, second.command_id) == ("rollback", 40, "c")

    def test_a_spool_of_a_past_attempt_is_stored_and_not_judged(
        self, services, run_id, make, steps_of
    ):
        start = make.rollback_start(0)
        services.ingest.accept(run_id, make.batch(0, [1], attempt=2, attempt_start=start))
        answer = services.ingest.accept(run_id, make.batch(7, range(1, 9), 99.0))
        assert (answer.attempt, answer.accepted_sequence) == (1, 7)
        assert steps_of()[1] == list(range(1, 9))
        assert services.queries.alerts(run_id) == []
        assert services.runs.get(run_id).step == 1

    def test_an_attempt_may_be_skipped_and_come_late(self, services, run_id, make, steps_of):
        third = make.batch(0, [5], attempt=3, attempt_start=make.rollback_start(4, parent=2))
        second = make.batch(0, [9], attempt=2, attempt_start=make.rollback_start(8))
        services.ingest.accept(run_id, third)
        services.ingest.accept(run_id, second)
        run = services.runs.get(run_id)
        assert (run.attempt, [attempt.number for attempt in run.attempts]) == (3, [1, 2, 3])
        assert steps_of() == {2: [9], 3: [5]}


class TestContent:
    def test_all_catalogs_of_a_step_come_before_the_decision(self, services, run_id, make):
        other = Catalog.of(["other"])
        services.runs.add_catalogs(run_id, catalogs_of(other))
        blocks = [make.block([1, 2, 3]), make.block([2], catalog=other)]
        services.ingest.accept(run_id, make.batch(0, blocks=blocks))
        late = make.block([3], catalog=other)  # the step under way, in a batch of its own
        services.ingest.accept(run_id, make.batch(1, blocks=[late]))
        (data,) = services.queries.read(run_id, SeriesQuery(series=("other",)))
        assert data.steps == (2, 3)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_is_data(self, services, run_id, make, value):
        services.ingest.accept(run_id, make.batch(0, [1, 2], [value, 1.0]))
        (data,) = services.queries.read(run_id, SeriesQuery(series=("loss",)))
        assert np.array_equal(data.values, [value, 1.0], equal_nan=True)
        assert (data.num_samples, data.num_nonfinite) == (2, 1)

    def test_markers_and_health_are_kept(self, services, run_id, make):
        marker = Marker(kind="lr_change", step=3, text="the schedule\x00 restarts")
        health = AgentHealth(frames_dropped=7)
        batch = make.batch(0, [1], markers=(marker,), health=health)
        services.ingest.accept(run_id, batch)
        with services.database.reading() as session:
            row = session.query(MarkerRow).one()
            assert (row.kind, row.step, row.text) == ("lr_change", 3, "the schedule\ufffd restarts")
            assert session.get(RunRow, run_id).agent_health["frames_dropped"] == 7

    def test_an_old_inventory_does_not_replace_a_newer_one(self, services, run_id, make):
        newer = make.batch(1, [5], snapshots=(make.snapshot(4),))
        older = make.batch(0, [1], snapshots=(make.snapshot(1),))
        services.ingest.accept(run_id, newer)
        services.ingest.accept(run_id, older)
        with services.database.reading() as session:
            held = Repositories(session).attempts.snapshots(run_id)
        assert [snapshot.id for snapshot in held] == ["s4"]

    def test_healthy_snapshots_are_named_in_the_answer(self, services, run_id, make):
        batch = make.batch(0, range(1, 21), snapshots=(make.snapshot(4), make.snapshot(19)))
        assert services.ingest.accept(run_id, batch).healthy_snapshots == ("s4",)


def catalogs_of(*catalogs):
    return CatalogsAdd(catalogs=catalogs)


def json_batch(sequence, *frames, **changes):
    return JsonBatch.model_validate(
        {"attempt": 1, "sequence": sequence, "frames": frames} | changes
    )


class TestJson:
    @pytest.fixture(params=["sqlite"])
    def backend(self, request):
        return request.param

    def test_names_become_series(self, services, run_id):
        frames = [
            {"step": 1, "values": {"accuracy": 0.5, 'loss{source="web"}': 2}},
            {"step": 2, "values": {'loss{source="web"}': "nan", "accuracy": "inf"}},
            {"step": 2, "time": "2026-03-01T12:00:00Z", "values": {"accuracy_2": -1}},
        ]
        answer = services.ingest.accept_json(run_id, json_batch(0, *frames))
        assert answer.accepted_sequence == 0
        series = ('loss{source="web"}', "accuracy", "accuracy_2")
        web, accuracy, other = services.queries.read(run_id, SeriesQuery(series=series))
        assert (web.steps, web.values[0], np.isnan(web.values[1])) == ((1, 2), 2.0, True)
        assert accuracy.values == (0.5, np.inf)
        assert (other.steps, other.values, other.times) == ((2,), (-1.0,), (1772366400.0,))

    def test_the_same_again_is_the_same(self, services, run_id):
        batch = json_batch(0, {"step": 1, "values": {"accuracy": 0.5}})
        services.ingest.accept_json(run_id, batch)
        assert services.ingest.accept_json(run_id, batch).duplicate
        assert len(services.queries.series(run_id)) == 3

    @pytest.mark.parametrize(
        ("frames", "code", "field"),
        [
            ([{"step": 1, "values": {"Bad Name": 1}}], "invalid_input", "frames.0.values"),
            (
                [{"step": 1, "values": {'a{b="1",c="2"}': 1, 'a{c="2",b="1"}': 1}}],
                "invalid_input",
                "frames.0.values",
            ),
            (
                [{"step": 2, "values": {"a": 1}}, {"step": 1, "values": {"b": 1}}],
                "step_out_of_order",
                "frames.1.step",
            ),
            ([{"step": 1, "values": {"a": 1e39}}], "value_out_of_range", "frames.0.values.a"),
            (
                [{"step": 1, "values": {'a{b="x\x00"}': 1}}],
                "invalid_input",
                "catalogs.0.series.0.labels",
            ),
        ],
        ids=["name", "series twice", "order", "too large", "NUL"],
    )
    def test_what_means_nothing_is_refused(self, services, run_id, frames, code, field):
        with pytest.raises(InvalidInputError) as caught:
            services.ingest.accept_json(run_id, json_batch(0, *frames))
        assert (caught.value.code, caught.value.field) == (code, field)
        assert len(services.queries.series(run_id)) == 2

    def test_values_as_names_are_stopped(self, services, run_id, monkeypatch):
        monkeypatch.setattr("stabilizer.collector.services.frames.validation.MAX_CATALOGS", 3)
        services.ingest.accept_json(run_id, json_batch(0, {"step": 1, "values": {"a_1": 1}}))
        services.ingest.accept_json(run_id, json_batch(1, {"step": 1, "values": {"a_2": 1}}))
        with pytest.raises(InvalidInputError) as caught:
            services.ingest.accept_json(run_id, json_batch(2, {"step": 1, "values": {"a_3": 1}}))
        assert caught.value.code == "too_many_catalogs"
