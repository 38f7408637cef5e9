import json
import math

import pytest

from dashboard.figures.line_chart import extend_chart, line_chart, shown_in
from dashboard.figures.palette import BLUE, ORANGE
from dashboard.figures.samples import Line
from dashboard.figures.scene import make_scene

LOSS = Line(series="loss", label="loss", colour=BLUE)
SCALE = Line(series="lr_scale", label="lr_scale", colour=ORANGE, secondary=True)


@pytest.fixture
def shown(make):
    """A panel with loss up to step 3 and lr_scale up to step 2, both between 1 and 3."""
    data = [make.data([1, 2, 3], [3, 2, 1]), make.data([1, 2], [1, 1], series="lr_scale")]
    scene = make_scene([make.attempt()], 3)
    return shown_in(line_chart([LOSS, SCALE], data, scene))


def extended(figure, value):
    """What plotly does with extendData."""
    columns, indices = value
    for name, parts in columns.items():
        for index, part in zip(indices, parts, strict=True):
            figure["data"][index][name] = [*figure["data"][index][name], *part]
    return figure


def test_no_new_samples_is_none(make, shown):
    assert extend_chart(shown, []) is None
    assert extend_chart(shown, [make.data([1, 2, 3], [3, 2, 1])]) is None


def test_only_new_samples_travel(make, shown):
    extension = extend_chart(shown, [make.data([2, 3, 4, 5], [2, 1, 1.5, 2.5])])
    assert extension.value == [{"x": [[4, 5]], "y": [[1.5, 2.5]], "customdata": [[1, 1]]}, [0]]
    assert not extension.outgrown


def test_known_samples_are_ignored(make, shown):
    data = [make.data([4, 5], [1, 2])]
    after = extend_chart(shown, data).shown
    assert extend_chart(after, data) is None


def test_what_is_shown_survives_the_browser_s_store(make, shown):
    stored = json.loads(json.dumps(shown))
    data = [make.data([4], [2]), make.data([3, 4], [1, 0.5], series="lr_scale")]
    assert extend_chart(stored, data).value == extend_chart(shown, data).value
    assert extend_chart(stored, data).value[1] == [0, 1]


def test_samples_of_another_attempt_wait_for_a_new_figure(make, shown):
    assert extend_chart(shown, [make.data([4], [1], attempt=2)]) is None


def test_an_extended_figure_is_the_one_that_would_be_built(make):
    scene = make_scene([make.attempt()], 6)
    first = [make.data([1, 2], [3, 1])]
    more = [make.data([1, 2, 3, 4, 5, 6], [3, 1, math.nan, 2, math.inf, 1.5])]
    before, after = (line_chart([LOSS], data, scene) for data in (first, more))
    whole = extended(before, extend_chart(shown_in(before), more).value)
    for trace, expected in zip(whole["data"], after["data"], strict=True):
        assert {name: trace[name] for name in ("x", "y", "customdata")} == {
            name: expected[name] for name in ("x", "y", "customdata")
        }


def test_a_value_outside_of_the_panel_is_marked_and_asks_for_a_new_one(make, shown):
    extension = extend_chart(shown, [make.data([4], [50])])
    columns, indices = extension.value
    assert indices == [0, 3]
    assert columns["customdata"][1] == ["loss: 50 at step 4"]
    assert extension.outgrown


def test_a_nan_does_not_ask_for_a_new_panel(make, shown):
    extension = extend_chart(shown, [make.data([4], [math.nan])])
    assert extension.value[1] == [0, 2]
    assert not extension.outgrown


def test_the_first_value_of_an_empty_panel_asks_for_a_new_one(make):
    shown = shown_in(line_chart([LOSS], [], make_scene([make.attempt()], 0)))
    assert extend_chart(shown, [make.data([1], [5])]).outgrown
    assert not extend_chart(shown, [make.data([1], [math.nan])]).outgrown


def test_a_line_that_grew_too_long_asks_for_a_new_one(make, shown):
    steps = range(4, 4100)
    assert extend_chart(shown, [make.data(steps, [2] * len(steps))]).outgrown


def test_a_zero_on_a_logarithmic_axis_is_a_gap_with_a_mark(make):
    scene = make_scene([make.attempt()], 3)
    figure = line_chart([LOSS], [make.data([1, 2], [1, 10])], scene, log_y=True)
    extension = extend_chart(shown_in(figure), [make.data([3], [0])])
    columns, indices = extension.value
    assert indices == [0, 3]
    assert columns["y"][0] == [None]


def test_newest_attempt_extends_the_live_line(make):
    attempts = [make.attempt(1, 0, 8), make.attempt(2, 5, 5, parent=1)]
    figure = line_chart([LOSS], [make.data(range(1, 9), range(1, 9))], make_scene(attempts, 5))
    extension = extend_chart(shown_in(figure), [make.data([6, 7], [6, 7], attempt=2)])
    assert extension.value[0]["x"] == [[6, 7]]
    assert extension.value[0]["customdata"] == [[2, 2]]
