import math

import numpy as np
import pytest

from stabilizer.errors import NotFoundError
from stabilizer.protocol.runs import CatalogsAdd
from stabilizer.protocol.series import Catalog, SeriesKey
from stabilizer.protocol.views import HeatmapQuery


def rms(tower, layer, kind, **labels):
    module = f"{tower}.{layer}.{kind}"
    names = {"tower": tower, "layer": str(layer), "kind": kind, "module": module} | labels
    return SeriesKey(metric="activation_rms", labels=names)


MODEL = Catalog.of(
    [
        rms("cross_attention", 0, "q_proj"),
        rms("language", 10, "fc2"),
        rms("language", 2, "fc2"),
        rms("language", 2, "o_proj"),
        rms("vision", 1, "fc2"),
        SeriesKey(metric="loss"),
    ]
)
WIDTH = len(MODEL)


@pytest.fixture
def run_id(services, make):
    return services.runs.register(make.register(catalogs=(MODEL,))).run_id


@pytest.fixture
def send(services, run_id, make):
    def send(sequence, steps, values=None, *, present=None, **header):
        steps = list(steps)
        if values is None:
            values = np.arange(WIDTH) + np.array(steps)[:, None] / 1000
        block = make.block(steps, catalog=MODEL, values=values, present=present)
        services.ingest.accept(run_id, make.batch(sequence, blocks=[block], **header))

    return send


def heatmap(services, run_id, **given):
    return services.heatmaps.heatmap(run_id, HeatmapQuery(**{"metric": "activation_rms"} | given))


def row(found, module):
    return next(i for i, one in enumerate(found.rows) if one.module == module)


def test_rows_go_from_the_bottom_of_the_model_to_its_top(services, run_id, send):
    send(0, [1])
    found = heatmap(services, run_id)
    assert [(one.tower, one.layer, one.kind) for one in found.rows] == [
        ("vision", 1, "fc2"),
        ("language", 2, "o_proj"),
        ("language", 2, "fc2"),
        ("language", 10, "fc2"),
        ("cross_attention", 0, "q_proj"),
    ]
    expected = [4.001, 3.001, 2.001, 1.001, 0.001]
    assert [values[0] for values in found.values] == pytest.approx(expected)


def test_what_is_on_no_tower_and_no_layer_comes_last(services, make, run_id, send):
    extra = [
        SeriesKey(metric="activation_rms", labels={"module": "norm", "tower": "language"}),
        SeriesKey(metric="activation_rms", labels={"module": "adapter", "tower": "audio"}),
        SeriesKey(metric="activation_rms", labels={"layer": "odd"}),
    ]
    services.runs.add_catalogs(run_id, CatalogsAdd(catalogs=(Catalog.of(extra),)))
    send(0, [1])
    rows = heatmap(services, run_id).rows
    assert [one.module for one in rows][3:] == [
        "language.10.fc2",
        "norm",
        "cross_attention.0.q_proj",
        "adapter",
        None,
    ]
    assert rows[-1].layer is None


@pytest.mark.parametrize(
    ("narrowed", "number"),
    [
        ({"kind": "fc2"}, 3),
        ({"tower": "language"}, 3),
        ({"tower": "language", "kind": "fc2"}, 2),
        ({"head": "min"}, 0),
        ({"kind": "nothing"}, 0),
    ],
)
def test_labels_narrow_it_down(services, run_id, send, narrowed, number):
    send(0, [1, 2])
    found = heatmap(services, run_id, **narrowed)
    assert (len(found.rows), len(found.values)) == (number, number)
    assert len(found.columns) == (2 if number else 0)


def test_a_spike_and_a_nan_are_in_the_map_of_a_long_run(services, run_id, send):
    values = np.ones((1000, WIDTH), np.float32)
    values[333, 2], values[700, 2], values[701, 2] = 900.0, np.nan, np.inf
    send(0, range(1, 1001), values)
    found = heatmap(services, run_id, max_columns=10)
    index = row(found, "language.2.fc2")
    assert len(found.columns) == 10
    assert found.values[index] == (1.0, 1.0, 1.0, 900.0, *[1.0] * 6)
    assert found.nonfinite[index] == (0, 0, 0, 0, 0, 0, 0, 2, 0, 0)
    assert sum(map(sum, found.nonfinite)) == 2


def test_nan_shows_only_where_nothing_else_was(services, run_id, send):
    values = np.full((4, WIDTH), np.nan, np.float32)
    values[3] = 1.0
    present = np.ones((4, WIDTH), bool)
    present[2] = False
    present[2, -1] = True  # the loss alone, which makes no column
    send(0, [1, 2, 3, 4], values, present=present)
    found = heatmap(services, run_id)
    assert [column.first_step for column in found.columns] == [1, 2, 4]
    assert all(math.isnan(value) for value in found.values[0][:2])
    assert found.values[0][2] == 1.0
    text = found.model_dump_json()
    assert type(found).model_validate_json(text).nonfinite == found.nonfinite


def test_not_measured_is_none(services, run_id, send):
    present = np.ones((2, WIDTH), bool)
    present[1, 0] = False
    send(0, [1, 2], present=present)
    found = heatmap(services, run_id)
    assert found.values[row(found, "cross_attention.0.q_proj")][1] is None
    assert found.nonfinite[row(found, "cross_attention.0.q_proj")] == (0, 0)


class TestLineage:
    @pytest.fixture(autouse=True)
    def rolled_back(self, send, make):
        send(0, range(1, 11), np.full((10, WIDTH), 1.0))
        start = make.rollback_start(5)
        send(0, range(6, 9), np.full((3, WIDTH), 2.0), attempt=2, attempt_start=start)

    def test_the_abandoned_branch_is_left_out(self, services, run_id):
        found = heatmap(services, run_id)
        assert [column.first_step for column in found.columns] == list(range(1, 9))
        assert found.values[0] == (1.0,) * 5 + (2.0,) * 3

    def test_an_attempt_can_be_asked_for_by_itself(self, services, run_id):
        found = heatmap(services, run_id, attempt=1)
        assert found.values[0] == (1.0,) * 10
        assert heatmap(services, run_id, attempt=7).columns == ()

    @pytest.mark.parametrize(
        ("given", "steps"), [((4, 6), [4, 5, 6]), ((8, None), [8]), ((9, 9), [])]
    )
    def test_both_ends_belong_to_a_range(self, services, run_id, given, steps):
        found = heatmap(services, run_id, from_step=given[0], to_step=given[1])
        assert [column.first_step for column in found.columns] == steps

    def test_a_late_batch_of_the_attempt_before_is_cut_as_well(self, services, run_id, send):
        send(3, range(4, 8), np.full((4, WIDTH), 9.0))
        found = heatmap(services, run_id)
        assert found.values[0] == (1.0, 1.0, 1.0, 9.0, 9.0, 2.0, 2.0, 2.0)


def test_a_series_in_two_catalogs_is_one_row(services, run_id, send, make):
    other = Catalog.of([rms("vision", 1, "fc2")])
    services.runs.add_catalogs(run_id, CatalogsAdd(catalogs=(other,)))
    send(0, [1, 3])
    block = make.block([2, 4], catalog=other, values=[[7.0], [8.0]])
    services.ingest.accept(run_id, make.batch(1, blocks=[block]))
    found = heatmap(services, run_id, tower="vision", statistic="last")
    assert found.values == (pytest.approx((4.001, 7.0, 4.003, 8.0)),)


def test_an_empty_run_has_rows_and_no_columns(services, run_id):
    found = heatmap(services, run_id)
    assert (len(found.rows), found.columns, found.values[0]) == (5, (), ())


def test_very_many_rows_get_fewer_columns(services, run_id, send, monkeypatch):
    monkeypatch.setattr("stabilizer.collector.services.views.heatmap.MAX_CELLS", 30)
    send(0, range(1, 101))
    assert len(heatmap(services, run_id, max_columns=100).columns) == 6


def test_what_does_not_exist_is_named(services, run_id):
    for given, code in (((run_id, "nothing"), "unknown_metric"), (("x", "loss"), "unknown_run")):
        with pytest.raises(NotFoundError) as caught:
            heatmap(services, given[0], metric=given[1])
        assert caught.value.code == code


def test_metrics_show_what_they_can_be_narrowed_by(services, run_id):
    heads = [
        SeriesKey(metric="attention_entropy", labels={"module": "a", "head": head})
        for head in ("min", "mean")
    ]
    services.runs.add_catalogs(run_id, CatalogsAdd(catalogs=(Catalog.of(heads), MODEL)))
    by_name = {one.metric: one for one in services.heatmaps.metrics(run_id)}
    assert list(by_name) == ["activation_rms", "loss", "attention_entropy"]
    found = by_name["activation_rms"]
    assert (found.kinds, found.num_series) == (("fc2", "o_proj", "q_proj"), 5)
    assert found.towers == ("cross_attention", "language", "vision")
    assert by_name["attention_entropy"].heads == ("mean", "min")
    assert [one.has_modules for one in by_name.values()] == [True, False, True]
    with pytest.raises(NotFoundError):
        services.heatmaps.metrics("x")
