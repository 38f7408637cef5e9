import json
import math

import numpy as np
import pytest

from dashboard.figures.line_chart import line_chart, shown_in
from dashboard.figures.palette import BLUE, ORANGE
from dashboard.figures.samples import Line
from dashboard.figures.scene import Events, make_scene

LOSS = Line(series="loss", label="loss", colour=BLUE)
SCALE = Line(series="lr_scale", label="lr_scale", colour=ORANGE, secondary=True)


@pytest.fixture
def rolled_back(make):
    """Attempt 1 to step 8, then back to 5."""
    return make_scene([make.attempt(1, 0, 8), make.attempt(2, 5, 10, parent=1)], 10)


@pytest.fixture
def straight(make):
    return make_scene([make.attempt(1, 0, 100)], 100)


def test_attempts_are_one_live_line_in_the_order_of_steps(make, rolled_back, valid):
    data = [
        make.data([6, 7, 8, 9, 10], [2.6, 2.7, 2.8, 2.9, 3.0], attempt=2),
        make.data(range(1, 9), [1.1, 1.2, 1.3, 1.4, 1.5, 9.6, 9.7, 9.8]),
    ]
    figure = line_chart([LOSS], data, rolled_back)
    live = figure["data"][0]
    assert live["x"] == list(range(1, 11))
    assert live["y"] == [1.1, 1.2, 1.3, 1.4, 1.5, 2.6, 2.7, 2.8, 2.9, 3.0]
    assert live["customdata"] == [1] * 5 + [2] * 5
    valid(figure)


def test_an_abandoned_branch_begins_where_it_was_left_and_is_faded(make, rolled_back):
    data = [make.data(range(1, 9), range(1, 9)), make.data([6], [2], attempt=2)]
    (left,) = [trace for trace in line_chart([LOSS], data, rolled_back)["data"] if "meta" in trace]
    assert (left["x"], left["y"]) == ([5, 6, 7, 8], [5, 6, 7, 8])
    assert left["opacity"] < 1
    assert left["line"]["dash"] != "solid"
    assert not left["showlegend"]
    assert left["meta"]["label"] == "loss, attempt 1 (abandoned)"


def test_an_attempt_beside_the_way_begins_with_its_own_first_sample(make):
    attempts = [make.attempt(1, 0), make.attempt(2, 0, parent=1), make.attempt(3, 50, parent=1)]
    data = [make.data([10], [1]), make.data([10, 20], [math.nan, 2], attempt=2)]
    figure = line_chart([LOSS], data, make_scene(attempts, 60))
    assert figure["data"][0]["x"] == [10]
    assert figure["data"][1]["customdata"] == ["loss, attempt 2 (abandoned): NaN at step 10"]
    assert figure["data"][4]["x"] == [10, 20]


def test_an_attempt_that_is_not_known_yet_is_left_out(make, straight):
    data = [make.data([1], [1]), make.data([1], [2], attempt=2)]
    assert line_chart([LOSS], data, straight)["data"][0]["y"] == [1]


def test_nan_and_inf_break_the_line_and_have_marks_of_their_own(make, straight, valid):
    data = [make.data([1, 2, 3, 4], [5, math.nan, -math.inf, 6])]
    figure = line_chart([LOSS], data, straight)
    assert figure["data"][0]["y"] == [5, None, None, 6]
    marks = figure["data"][1]
    assert marks["x"] == [2, 3]
    assert marks["customdata"] == ["loss: NaN at step 2", "loss: -Inf at step 3"]
    json.dumps(figure, allow_nan=False)
    valid(figure)


def test_lines_that_break_at_one_step_share_a_mark(make, straight):
    other = Line(series="z_loss", label="z-loss", colour=ORANGE)
    data = [make.data([1], [math.nan]), make.data([1], [math.inf], series="z_loss")]
    marks = line_chart([LOSS, other], data, straight)["data"][2]
    assert marks["x"] == [1]
    assert marks["customdata"] == ["loss: NaN at step 1\nz-loss: Inf at step 1"]


def test_a_spike_is_marked_at_the_edge_and_leaves_the_range_alone(make, straight):
    values = [2.5] * 100
    values[49:52] = [3e3, 1e6, 2e3]
    figure = line_chart([LOSS], [make.data(range(1, 101), values)], straight)
    assert figure["layout"]["yaxis"]["range"][1] < 10
    assert figure["layout"]["meta"]["y_full"][0][1] > 1e6
    above = figure["data"][2]
    assert above["x"] == [51]
    assert above["customdata"] == [
        "loss: 1,000,000 at step 51, out of range from step 50 to 52",
    ]
    assert figure["data"][0]["y"][50] == 1e6


def test_a_logarithmic_panel_marks_what_is_not_positive_below(make, straight, valid):
    figure = line_chart(
        [LOSS], [make.data([1, 2, 3], [0.1, 0, 10])], straight, log_y=True, height=240
    )
    assert figure["layout"]["yaxis"]["type"] == "log"
    low, high = figure["layout"]["yaxis"]["range"]
    assert low < -1 < 1 < high
    assert figure["data"][0]["y"] == [0.1, None, 10]
    assert figure["data"][3]["customdata"] == ["loss: 0 at step 2"]
    assert figure["layout"]["height"] == 240
    valid(figure)


def test_ticks_of_a_logarithmic_panel_are_written_out(make, straight):
    near = line_chart([LOSS], [make.data([1, 2], [0.5, 3])], straight, log_y=True)
    far = line_chart([LOSS], [make.data([1, 2], [1e-6, 1e6])], straight, log_y=True)
    assert {"0.5", "1", "2"} < set(near["layout"]["yaxis"]["ticktext"])
    assert len(far["layout"]["yaxis"]["ticktext"]) <= 6
    assert "1" in far["layout"]["yaxis"]["ticktext"]


def test_a_logarithmic_panel_of_zeros_has_marks_and_no_scale(make, straight, valid):
    figure = line_chart([LOSS], [make.data([1, 2], [0, 0])], straight, log_y=True)
    assert figure["data"][3]["customdata"] == ["loss: 0 at step 1, out of range from step 1 to 2"]
    assert not figure["layout"]["yaxis"]["showticklabels"]
    valid(figure)


def test_a_second_axis_begins_at_zero_and_has_no_grid(make, straight, valid):
    data = [make.data([1, 2], [1e-4, 2e-4]), make.data([1, 2], [1.0, 0.5], series="lr_scale")]
    figure = line_chart([LOSS, SCALE], data, straight, log_y=True)
    right = figure["layout"]["yaxis2"]
    low, high = right["range"]
    assert -0.1 < low < 0
    assert 1 < high < 1.5
    assert right["type"] == "linear"
    assert not right["showgrid"]
    assert [trace["yaxis"] for trace in figure["data"][:2]] == ["y", "y2"]
    valid(figure)


def test_a_lone_sample_is_seen(make, straight):
    assert line_chart([LOSS], [make.data([7], [1])], straight)["data"][0]["mode"] == "lines+markers"


def test_empty_panel_has_a_note(straight, valid):
    figure = line_chart([LOSS], [], straight)
    assert figure["layout"]["annotations"][0]["text"] == "no samples in this range"
    assert figure["layout"]["xaxis"]["range"][0] == 0
    valid(figure)


def test_a_run_that_has_not_begun_has_a_panel(valid):
    valid(line_chart([LOSS], [], make_scene([], 0)))


def test_a_legend_is_there_for_several_lines_only_and_says_what_was_written(make, straight, valid):
    one = line_chart([LOSS], [], straight)
    named = Line(series="x", label="<b>x</b>", colour=ORANGE)
    two = line_chart([LOSS, named], [make.data([1], [1], series="x")], straight)
    assert not one["layout"]["showlegend"]
    assert two["layout"]["showlegend"]
    assert two["data"][1]["name"] == "&lt;b&gt;x&lt;/b&gt;"
    assert shown_in(two)["lines"][1]["label"] == "<b>x</b>"
    valid(two)


def test_events_are_the_same_in_every_panel_and_valid(make, valid):
    events = Events(
        incidents=[make.incident()],
        commands=[make.command(1, make.rollback(to=20), step=80)],
        markers=[make.marker()],
    )
    scene = make_scene([make.attempt(1, 0, 80), make.attempt(2, 20, 90, 1)], 90, events=events)
    panels = [line_chart([LOSS], [], scene), line_chart([LOSS, SCALE], [], scene, log_y=True)]
    assert panels[0]["layout"]["shapes"] == panels[1]["layout"]["shapes"] != []
    assert panels[0]["layout"]["meta"]["notes"] == panels[1]["layout"]["meta"]["notes"] != []
    for panel in panels:
        valid(panel)


def test_the_range_has_room_to_the_right_and_takes_in_abandoned_steps(make):
    scene = make_scene([make.attempt(1, 1000, 3000), make.attempt(2, 2000, 2500, 1)], 2500)
    assert scene.x_range == (1000, 3060)
    assert not scene.is_zoomed


def test_a_zoom_is_the_range(make):
    scene = make_scene([make.attempt()], 100, zoom=(20, 30))
    figure = line_chart([LOSS], [], scene)
    assert figure["layout"]["xaxis"]["range"] == [20, 30]
    assert figure["layout"]["meta"]["is_zoomed"]


def test_only_steps_can_be_zoomed(make, straight):
    layout = line_chart([LOSS, SCALE], [make.data([1], [1])], straight)["layout"]
    assert all(layout[name]["fixedrange"] for name in ("yaxis", "yaxis2", "yaxis3"))
    assert "fixedrange" not in layout["xaxis"]


def test_a_figure_knows_no_colour_scheme(make, straight):
    layout = line_chart([LOSS], [make.data([1], [1])], straight)["layout"]
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"
    assert "color" not in layout["font"]


def test_a_long_run_travels_light(make, straight):
    values = np.float32(np.random.default_rng(0).normal(2.5, 0.1, 1500))
    figure = line_chart([LOSS], [make.data(range(1, 1501), values)], straight)
    assert len(json.dumps(figure)) < 40_000
