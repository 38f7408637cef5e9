import numpy as np
import pytest

from stabilizer.errors import NotFoundError, StabilizerError
from stabilizer.protocol.queries import SeriesQuery
from stabilizer.protocol.runs import CatalogsAdd
from stabilizer.protocol.series import Catalog


@pytest.fixture(params=["sqlite"])
def backend(request):
    return request.param


@pytest.fixture
def long_run(services, run_id, make):
    """1,000 steps in batches of 100, with one spike, one dip, one NaN and one Inf."""
    losses = np.sin(np.arange(1, 1001) / 50).astype(np.float32)
    losses[[333, 500, 700, 701]] = [900.0, -900.0, np.nan, np.inf]
    for sequence in range(10):
        part = slice(100 * sequence, 100 * (sequence + 1))
        steps = np.arange(1, 1001)[part]
        services.ingest.accept(run_id, make.batch(sequence, steps, losses[part]))
    return losses


def read(services, run_id, **given):
    return services.queries.read(run_id, SeriesQuery(**{"series": ("loss",)} | given))


class TestRead:
    def test_all_of_it(self, services, run_id, long_run):
        (data,) = read(services, run_id)
        assert data.steps == tuple(range(1, 1001))
        assert np.array_equal(np.array(data.values, np.float32), long_run, equal_nan=True)
        assert (data.num_samples, data.num_nonfinite) == (1000, 2)

    @pytest.mark.parametrize("given", [(95, 105), (1000, None), (1, 1), (5, 4), (2000, 3000)])
    def test_both_ends_belong_to_a_range(self, services, run_id, long_run, given):
        found = read(services, run_id, from_step=given[0], to_step=given[1])
        steps = [step for data in found for step in data.steps]
        assert steps == list(range(given[0], min(1000, given[1] or 1000) + 1))

    @pytest.mark.parametrize("max_points", [4, 10, 40, 400])
    def test_fewer_points_lose_no_spike(self, services, run_id, long_run, max_points):
        (data,) = read(services, run_id, max_points=max_points)
        assert len(data.steps) <= max_points
        assert {334, 501, 701, 1000} <= set(data.steps)
        assert (max(np.nan_to_num(data.values, posinf=0)), min(data.values)) == (900.0, -900.0)
        assert (data.num_samples, data.num_nonfinite) == (1000, 2)
        assert list(data.steps) == sorted(set(data.steps))

    def test_attempts_stay_apart(self, services, run_id, make, long_run):
        start = make.rollback_start(900)
        batch = make.batch(0, range(901, 950), attempt=2, attempt_start=start)
        services.ingest.accept(run_id, batch)
        first, second = read(services, run_id, from_step=895)
        assert (first.attempt, first.num_samples) == (1, 106)
        assert (second.attempt, second.num_samples) == (2, 49)
        assert [data.attempt for data in read(services, run_id, attempt=2)] == [2]

    def test_every_bucket_with_a_non_finite_sample_shows_one_in_each_attempt(
        self, services, run_id, make
    ):
        losses = np.full(3000, 2.0, np.float32)
        broken = np.arange(7, 3000, 150)
        losses[broken] = np.where(broken % 2, np.nan, -np.inf)
        services.ingest.accept(run_id, make.batch(0, range(1, 3001), losses))
        start = make.rollback_start(3000)
        batch = make.batch(0, range(3001, 6001), losses, attempt=2, attempt_start=start)
        services.ingest.accept(run_id, batch)
        found = read(services, run_id, max_points=400)  # 100 buckets of 30 steps
        for data, offset in zip(found, (0, 3000), strict=True):
            shown = np.array(data.steps)[~np.isfinite(data.values)]
            assert shown.tolist() == (broken + 1 + offset).tolist()
            assert (data.num_nonfinite, len(data.steps) <= 400) == (len(broken), True)

    def test_a_series_in_two_catalogs_is_one(self, services, run_id, make):
        other = Catalog.of(["loss", "accuracy"])
        blocks = [make.block([1, 3]), make.block([2, 4], catalog=other)]
        services.runs.add_catalogs(run_id, CatalogsAdd(catalogs=(other,)))
        services.ingest.accept(run_id, make.batch(0, blocks=blocks))
        assert read(services, run_id)[0].steps == (1, 2, 3, 4)
        names = [info.series for info in services.queries.series(run_id)]
        assert names == ["loss", "grad_norm", "accuracy"]

    def test_what_was_not_measured_is_left_out(self, services, run_id, make):
        present = np.array([[True, True], [False, True], [True, True]])
        block = make.block([1, 2, 3], present=present)
        services.ingest.accept(run_id, make.batch(0, blocks=[block]))
        assert read(services, run_id)[0].steps == (1, 3)

    def test_a_series_that_is_none_is_named(self, services, run_id):
        with pytest.raises(NotFoundError, match="'nothing'") as caught:
            read(services, run_id, series=("loss", "nothing"))
        assert caught.value.code == "unknown_series"

    def test_one_without_samples_is_empty(self, services, run_id):
        assert read(services, run_id) == []

    def test_json_shows_every_value(self, services, run_id, long_run):
        (data,) = read(services, run_id, from_step=700, to_step=703)
        text = data.model_dump_json()
        assert '"NaN","Infinity"' in text
        again = type(data).model_validate_json(text)
        assert np.array_equal(again.values, data.values, equal_nan=True)


def test_labels_are_reported(services, make):
    series = 'activation_rms{kind="o_proj",layer="3",module="a \\"b\\" \\\\c"}'
    register = make.register(catalogs=(Catalog.of([series]),))
    (info,) = services.queries.series(services.runs.register(register).run_id)
    assert (info.series, info.metric) == (series, "activation_rms")
    assert info.labels == {"kind": "o_proj", "layer": "3", "module": 'a "b" \\c'}


class TestChanges:
    def test_frames_without_decisions_wake_no_job(self, services, run_id, make):
        cursor = services.feed.cursor()
        services.ingest.accept(run_id, make.batch(0, [1, 2]))
        _, (event,) = services.feed.since(cursor)
        assert (event.frames, event.decisions, event.step) == (True, False, 2)

    def test_a_decision_is_reported_with_its_frames(self, services, run_id, make):
        cursor = services.feed.cursor()
        services.ingest.accept(run_id, make.batch(0, range(1, 4), 50.0))
        _, (event,) = services.feed.since(cursor)
        assert (event.run_id, event.frames, event.decisions) == (run_id, True, True)

    def test_a_write_that_fails_is_not_reported(self, services, run_id, make):
        cursor = services.feed.cursor()
        with pytest.raises(StabilizerError):
            services.ingest.accept(run_id, make.batch(0, [1], attempt=7))
        assert services.feed.since(cursor) == (cursor, [])


def test_counts_are_reported_by_state(services, run_id, make):
    services.ingest.accept(run_id, make.batch(0, range(1, 4), 50.0))
    counts = services.overview.counts()
    assert counts.runs == {"running": 1}
    assert counts.incidents == {"acting": 1}
    assert counts.commands == {("reduce_lr", "delivered"): 1}
    assert counts.broken_rules == 0
