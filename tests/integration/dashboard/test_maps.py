"""The map of a run and its panel of attention entropy, from a real collector."""

import json
import math

import pytest

from dashboard.callbacks.heatmap import HeatmapView, draw_maps
from dashboard.callbacks.panels import PanelView
from dashboard.errors import CollectorUnavailableError, MissingError

RMS = [
    f'activation_rms{{kind="{kind}",layer="{layer}",module="m{layer}.{kind}",tower="language"}}'
    for layer in range(2)
    for kind in ("fc2", "o_proj")
]
HEADS = {
    head: f'attention_entropy{{head="{head}",kind="attention",layer="0",module="a",tower="vision"}}'
    for head in ("min", "mean")
}
GRADIENTS = 'grad_norm{module="a.o",tower="language"}'
SIZES = 'param_norm{module="a.o",tower="language"}'


@pytest.fixture
def report(job):
    """Report the same values at steps."""

    def send(steps, values):
        frames = [{"step": step, "values": values} for step in steps]
        job.report(frames=frames)

    return send


@pytest.fixture
def draw(ask, collector, job):
    """Draw the maps; what is not JSON does not pass."""

    def act(zoom=None, width=800, **chosen):
        look, wanted = PanelView(width=width, zoom=zoom), HeatmapView(**chosen)
        maps = ask(collector, lambda client: draw_maps(client, job.run_id, look, wanted))
        json.dumps([maps.heatmap, maps.entropy], allow_nan=False)
        return maps

    return act


def rows(maps):
    return [text.splitlines()[0] for text in maps.heatmap["layout"]["meta"]["cells"]["rows"]]


def cells(maps, trace=0, name="customdata"):
    return maps.heatmap["data"][trace][name]


def entropy(maps):
    (line,) = maps.entropy["data"][: len(maps.entropy["layout"]["meta"]["shown"]["lines"])]
    return dict(zip(line["x"], line["y"], strict=True))


@pytest.mark.parametrize("values", [None, {"loss": 2.0, "grad_norm": 1.0}], ids=["none", "whole"])
def test_of_a_run_without_modules_there_is_no_map(report, draw, values):
    if values:
        report([1, 2], values)
    maps = draw()
    assert (maps.heatmap, maps.metric, list(maps.metrics), list(maps.kinds)) == (None, None, [], [])
    assert maps.entropy["layout"]["annotations"]


def test_what_means_most_is_shown_first(report, draw):
    every = dict.fromkeys([SIZES, GRADIENTS, *HEADS.values(), *RMS], 0.5)
    report([1, 2], every | {"loss": 2.0})
    maps = draw()
    assert maps.metric == "activation_rms"
    assert list(maps.metrics) == ["activation_rms", "attention_entropy", "grad_norm", "param_norm"]
    assert list(maps.kinds) == ["fc2", "o_proj"]
    assert maps.step == 2


def test_of_other_metrics_the_first_by_name_is_shown(report, draw):
    report([1], {SIZES: 1.0, 'gate{module="x"}': 0.1})
    assert draw().metric == "gate"


def test_a_metric_that_the_run_does_not_have_gives_way_to_the_first(report, draw):
    report([1], dict.fromkeys(RMS, 1.0))
    assert draw(metric="adam_rms").metric == "activation_rms"
    assert draw(metric="grad_norm").metric == "activation_rms"


def test_a_kind_narrows_the_map_and_one_that_the_metric_lacks_does_not(report, draw):
    report([1, 2], dict.fromkeys(RMS, 1.0))
    assert rows(draw(kind="o_proj")) == ["language 0 o_proj", "language 1 o_proj"]
    everything = [f"language {layer} {kind}" for layer in (0, 1) for kind in ("o_proj", "fc2")]
    assert rows(draw(kind="q_proj")) == everything
    assert rows(draw()) == everything


def test_a_bucket_shows_the_highest_activation_and_the_lowest_entropy(report, draw):
    for steps, high, low in (
        (range(1, 77), 1.0, 0.9),
        ([77], 50.0, 0.1),
        (range(78, 201), 1.0, 0.9),
    ):
        report(steps, dict.fromkeys(RMS, high) | {HEADS["min"]: low, HEADS["mean"]: 0.95})
    activation, attention = draw(width=160), draw(width=160, metric="attention_entropy")
    assert len(activation.heatmap["layout"]["meta"]["cells"]["columns"]) <= 40
    assert max(map(max, cells(activation))) == 50.0
    assert min(map(min, cells(attention))) == pytest.approx(0.1)
    assert len(rows(attention)) == 1  # the worst head represents all
    assert min(entropy(activation).values()) == pytest.approx(0.1)


def test_entropy_without_a_worst_head_is_shown_as_it_is(report, draw):
    report([1, 2], {HEADS["mean"]: 0.5})
    assert entropy(draw()) == {1: 0.5, 2: 0.5}


def test_lost_cells_have_a_colour_of_their_own_and_lost_heads_a_mark(report, draw):
    report([1], dict.fromkeys(RMS, 1.0) | {HEADS["min"]: 0.5})
    report([2], dict.fromkeys(RMS, "NaN") | {HEADS["min"]: "NaN"})
    report([3], dict.fromkeys(RMS, "Infinity") | {HEADS["min"]: 0.4})
    maps = draw()
    assert cells(maps)[0][0] == 1.0
    lost = cells(maps, trace=1, name="z")
    assert [[value for value in line if value] for line in lost] == [[1, 1]] * 4
    assert entropy(maps) == {1: 0.5, 2: None, 3: pytest.approx(0.4)}
    assert maps.entropy["data"][1]["x"] == [2]


def test_a_single_lost_head_in_a_long_history_is_not_hidden_by_its_neighbours(report, draw):
    report(range(1, 201), {HEADS["min"]: 0.5})
    report([201], {HEADS["min"]: "NaN"})
    report(range(202, 401), {HEADS["min"]: 0.5})
    (lost,) = [step for step, value in entropy(draw(width=160)).items() if value is None]
    assert 201 <= lost <= 211


def test_a_zoom_shows_its_steps_alone(report, draw):
    report(range(1, 401), dict.fromkeys(RMS, 1.0))
    columns = draw(zoom=(100.0, 120.0)).heatmap["layout"]["meta"]["cells"]["columns"]
    steps = [pair for pair in columns if pair]
    assert (steps[0][0], steps[-1][1]) == (100, 120)


def test_a_zoom_to_where_nothing_was_measured_says_so(report, draw):
    report([1, 2], dict.fromkeys([*RMS, HEADS["min"]], 1.0))
    maps = draw(zoom=(1000.0, 2000.0))
    assert maps.heatmap["data"] == []
    assert "no samples" in maps.heatmap["layout"]["annotations"][0]["text"]
    assert maps.metric == "activation_rms"


@pytest.mark.parametrize("colouring", ["relative", "absolute", "default", "", "of the rainbow"])
def test_a_colouring_that_does_not_exist_is_the_best_fit(report, draw, colouring):
    report(range(1, 20), {RMS[0]: 4.0})
    maps = draw(colouring=colouring)
    medians = maps.heatmap["layout"]["meta"]["cells"]["medians"]
    assert (medians is None) == (colouring == "absolute")


def test_after_a_rollback_the_map_shows_the_live_way_only(job, ask, collector):
    command = job.break_down()
    job.post(f"/commands/{command['id']}/approve", {"reason": "I agree"})
    job.report([12], "NaN")
    job.carry_out(command)
    job.report(range(5, 8), 1.5)
    maps = ask(
        collector, lambda client: draw_maps(client, job.run_id, PanelView(width=800), HeatmapView())
    )
    columns = [pair for pair in maps.heatmap["layout"]["meta"]["cells"]["columns"] if pair]
    assert [first for first, _ in columns] == [1, 2, 3, 4, 5, 6, 7]
    assert math.isclose(maps.step, 7)


def test_missing_run_and_unavailable_collector_raise(start_collector, make_job, ask):
    collector = start_collector()
    job = make_job(collector)
    for run_id in ("no such run", "a/../b"):
        with pytest.raises(MissingError):
            ask(
                collector,
                lambda client, run_id=run_id: draw_maps(
                    client, run_id, PanelView(width=800), HeatmapView()
                ),
            )
    collector.stop()
    with pytest.raises(CollectorUnavailableError):
        ask(
            collector,
            lambda client: draw_maps(client, job.run_id, PanelView(width=800), HeatmapView()),
        )
