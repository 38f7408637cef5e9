"""The panel of attention entropy, drawn from a map: the lowest head of each tower."""

import math
from datetime import UTC, datetime

import pytest

from dashboard.callbacks.heatmap import entropy_panel
from dashboard.figures.scene import make_scene
from stabilizer.protocol.runs import Attempt
from stabilizer.protocol.views import Heatmap, HeatmapColumn, HeatmapRow, HeatmapStatistic

NAN, INF = math.nan, math.inf


def row(tower, layer=0):
    name = f"{tower}.{layer}"
    series = f'attention_entropy{{head="min",module="{name}"}}'
    return HeatmapRow(series=series, module=name, tower=tower, kind="attention", layer=layer)


def heatmap(rows, columns, nonfinite=None):
    """Rows as pairs of a tower and its values; columns as pairs of steps."""
    lost = [[0] * len(columns) for _ in rows] if nonfinite is None else nonfinite
    return Heatmap(
        metric="attention_entropy",
        statistic=HeatmapStatistic.MIN,
        rows=tuple(row(tower, layer) for layer, (tower, _) in enumerate(rows)),
        columns=tuple(HeatmapColumn(first_step=one, last_step=two) for one, two in columns),
        values=tuple(tuple(values) for _, values in rows),
        nonfinite=tuple(map(tuple, lost)),
    )


@pytest.fixture
def scene():
    start = datetime(2026, 1, 1, tzinfo=UTC)
    attempt = Attempt(
        number=3,
        from_step=0,
        last_step=100,
        parent=None,
        reason="resume",
        command_id=None,
        skipped_samples=0,
        started_at=start,
    )
    return make_scene([attempt], 100)


def lines(figure):
    count = len(figure["layout"]["meta"]["shown"]["lines"])
    return {
        trace["name"]: dict(zip(trace["x"], trace["y"], strict=True))
        for trace in figure["data"][:count]
    }


def marks(figure):
    return figure["data"][len(figure["layout"]["meta"]["shown"]["lines"])]["x"]


COLUMNS = [(1, 10), (11, 20), (21, 30)]


def test_each_tower_has_a_line_of_its_lowest(scene):
    found = heatmap(
        [
            ("vision", [0.9, 0.8, 0.7]),
            ("vision", [0.5, 0.85, None]),
            ("cross_attention", [0.3, 0.2, 0.1]),
        ],
        COLUMNS,
    )
    assert lines(entropy_panel(found, scene)) == {
        "vision": {10: 0.5, 20: 0.8, 30: 0.7},
        "cross attention": {10: 0.3, 20: 0.2, 30: 0.1},
    }


def test_modules_of_no_tower_are_those_of_the_model(scene):
    found = heatmap([(None, [0.9]), (None, [0.4])], [(1, 10)])
    assert lines(entropy_panel(found, scene)) == {"model": {10: 0.4}}


def test_what_was_not_measured_is_left_out(scene):
    found = heatmap([("vision", [0.9, None, 0.7]), ("language", [None, None, None])], COLUMNS)
    assert lines(entropy_panel(found, scene)) == {"vision": {10: 0.9, 30: 0.7}, "language": {}}


@pytest.mark.parametrize("broken", [NAN, INF, -INF])
def test_a_head_that_is_not_finite_breaks_the_line_of_its_tower_and_is_marked(scene, broken):
    found = heatmap(
        [
            ("vision", [0.9, broken, 0.7]),
            ("vision", [0.8, 0.8, 0.8]),
            ("language", [0.6, 0.6, 0.6]),
        ],
        COLUMNS,
        [[0, 1, 0], [0, 0, 0], [0, 0, 0]],
    )
    figure = entropy_panel(found, scene)
    assert lines(figure)["vision"] == {10: 0.8, 20: None, 30: 0.7}
    assert lines(figure)["language"] == {10: 0.6, 20: 0.6, 30: 0.6}
    assert marks(figure) == [20]


def test_a_lost_sample_among_good_ones_of_its_cell_is_not_hidden_by_them(scene):
    found = heatmap([("vision", [0.9, 0.8, 0.7])], COLUMNS, [[0, 1, 0]])
    figure = entropy_panel(found, scene)
    assert lines(figure)["vision"] == {10: 0.9, 20: None, 30: 0.7}
    assert marks(figure) == [20]


@pytest.mark.parametrize(
    "found", [None, heatmap([], []), heatmap([("vision", [])], [])], ids=["none", "rows", "columns"]
)
def test_without_samples_it_says_so(scene, found):
    figure = entropy_panel(found, scene)
    assert all(not line for line in lines(figure).values())
    assert figure["layout"]["annotations"]


def test_it_shows_the_steps_of_the_other_panels(scene):
    figure = entropy_panel(heatmap([("vision", [0.9])], [(1, 10)]), scene)
    assert figure["layout"]["xaxis"]["range"] == list(scene.x_range)
