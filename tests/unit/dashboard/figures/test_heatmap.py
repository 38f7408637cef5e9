import json
import math
import re

import pytest

from dashboard.figures.heatmap import MAX_HEIGHT, Colouring, default_colouring, heatmap_chart
from dashboard.figures.palette import NONFINITE
from dashboard.figures.scene import make_scene
from stabilizer.protocol.views import Heatmap, HeatmapColumn, HeatmapRow, HeatmapStatistic

NAN, INF = math.nan, math.inf


def row(tower="language", layer=0, kind="fc2", head=None):
    module = f"model.{tower}.{layer}.{kind}"
    labels = {"kind": kind, "layer": layer, "module": module, "tower": tower, "head": head}
    text = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()) if value)
    series = f"activation_rms{{{text}}}"
    return HeatmapRow(series=series, module=module, tower=tower, kind=kind, layer=layer)


def heatmap(values, rows=None, columns=None, metric="activation_rms", nonfinite=None):
    width = len(values[0]) if values else 0
    return Heatmap(
        metric=metric,
        statistic=HeatmapStatistic.MAX,
        rows=tuple(rows or [row(layer=layer) for layer in range(len(values))]),
        columns=tuple(
            HeatmapColumn(first_step=first, last_step=last)
            for first, last in columns or [(10 * n + 10, 10 * n + 10) for n in range(width)]
        ),
        values=tuple(tuple(part) for part in values),
        nonfinite=tuple(
            tuple(part)
            for part in nonfinite
            or [
                [int(value is not None and not math.isfinite(value)) for value in part]
                for part in values
            ]
        ),
    )


@pytest.fixture
def scene(make):
    return make_scene([make.attempt(1, 0, 100)], 100)


def test_relative_cells_show_the_ratio_to_the_row_median(scene, valid):
    figure = heatmap_chart(heatmap([[1, 1, 1, 4, 0.5], [100, 100, 100, 100, 1e9]]), scene)
    cells = figure["data"][0]
    assert cells["z"] == [[0, 0, 0, 2, -1], [0, 0, 0, 0, 3]]
    assert (cells["zmin"], cells["zmax"]) == (-3, 3)
    assert cells["customdata"][1][4] == 1e9
    assert figure["layout"]["meta"]["cells"]["medians"] == [1, 100]
    valid(figure)


def test_nan_has_a_colour_that_no_scale_contains_and_what_is_not_measured_has_none(scene, valid):
    figure = heatmap_chart(heatmap([[1, NAN, None, INF, 1]]), scene)
    cells, marks = figure["data"]
    assert cells["z"] == [[0, None, None, None, 0]]
    assert marks["z"] == [[None, 1, None, 1, None]]
    assert {colour for _, colour in marks["colorscale"]} == {NONFINITE}
    json.dumps(figure, allow_nan=False)
    valid(figure)


def test_a_bucket_with_some_nan_is_marked_though_it_has_a_value(scene):
    figure = heatmap_chart(heatmap([[1, 2, 1]], nonfinite=[[0, 3, 0]]), scene)
    assert figure["data"][1]["z"] == [[None, 3, None]]
    assert figure["data"][0]["customdata"] == [[1, 2, 1]]


def test_a_finite_heatmap_carries_no_marks(scene):
    assert len(heatmap_chart(heatmap([[1, 2]]), scene)["data"]) == 1


@pytest.mark.parametrize(
    ("metric", "ends"), [("attention_entropy", (0, 1)), ("gate", (-1, 1))], ids=str
)
def test_metrics_with_a_meaning_of_their_own_have_a_fixed_scale(scene, metric, ends):
    assert default_colouring(metric) is Colouring.ABSOLUTE
    cells = heatmap_chart(heatmap([[0.4, 0.6]], metric=metric), scene)["data"][0]
    assert (cells["zmin"], cells["zmax"]) == ends
    assert cells["z"] == [[0.4, 0.6]]


def test_absolute_cells_go_by_powers_of_ten(scene):
    cells = heatmap_chart(heatmap([[0.1, 10, 0]]), scene, colouring=Colouring.ABSOLUTE)["data"][0]
    assert cells["z"] == [[-1, 1, -1]]
    assert (cells["zmin"], cells["zmax"]) == (-1, 1)
    assert cells["customdata"] == [[0.1, 10, 0]]
    assert cells["colorbar"]["ticktext"] == ["0.1", "1", "10"]


def test_absolute_cells_of_both_signs_are_linear_and_centred(scene):
    cells = heatmap_chart(heatmap([[-2, 1]]), scene, colouring=Colouring.ABSOLUTE)["data"][0]
    assert (cells["zmin"], cells["zmax"], cells["z"]) == (-2, 2, [[-2, 1]])


@pytest.mark.parametrize("colouring", list(Colouring))
@pytest.mark.parametrize(
    "values",
    [
        [[0, 0, 0]],
        [[0, 0, 5]],
        [[NAN, NAN]],
        [[None, None]],
        [[1e-300, 1e300, 1e-300]],
        [[-1, -2, 3]],
        [[5]],
    ],
    ids=str,
)
def test_odd_rows_are_drawn(scene, valid, values, colouring):
    figure = heatmap_chart(heatmap(values), scene, colouring=colouring)
    json.dumps(figure, allow_nan=False)
    valid(figure)


def test_a_value_whose_median_is_zero_is_at_the_end_of_the_scale(scene):
    assert heatmap_chart(heatmap([[0, 0, 5]]), scene)["data"][0]["z"] == [[0, 0, 3]]


def test_cells_reach_half_way_to_their_neighbours(scene):
    columns = [(1, 10), (11, 20), (31, 40)]
    figure = heatmap_chart(heatmap([[1, 1, 1]], columns=columns), scene)
    assert figure["data"][0]["x"] == [-2.0, 10.5, 25.5, 43.0]
    assert figure["layout"]["meta"]["cells"]["columns"] == columns


def test_what_is_measured_less_often_than_elsewhere_is_no_gap(scene):
    """A job measures every step while something is wrong, and each tenth one otherwise."""
    steps = [10, 20, 30, 40, *range(41, 101), 110, 120, 130, 140]
    figure = heatmap_chart(heatmap([[1] * 68], columns=[(at, at) for at in steps]), scene)
    cells = figure["data"][0]
    assert None not in cells["z"][0]
    assert cells["x"][:5] == [5, 15, 25, 35, 40.5]
    assert cells["x"][-5:] == [105, 115, 125, 135, 145]


def test_of_two_gaps_side_by_side_both_stay_empty(scene):
    steps = [10, 20, 30, 40, 500, 1000, 1010, 1020, 1030]
    figure = heatmap_chart(heatmap([[1] * 9], columns=[(at, at) for at in steps]), scene)
    assert [at for at, cell in enumerate(figure["data"][0]["z"][0]) if cell is None] == [4, 6]


def test_a_long_stretch_without_measurements_stays_empty(scene):
    columns = [(10, 10), (20, 20), (30, 30), (500, 500)]
    figure = heatmap_chart(heatmap([[1, 1, 1, 1]], columns=columns), scene)
    cells = figure["data"][0]
    assert cells["x"] == [5, 15, 25, 35, 495, 505]
    assert cells["z"] == [[0, 0, 0, None, 0]]
    assert figure["layout"]["meta"]["cells"]["columns"][3] is None


def test_rows_are_labelled_and_towers_set_apart(scene, valid):
    rows = [row("vision", n) for n in range(4)] + [row("language", n) for n in range(5)]
    figure = heatmap_chart(heatmap([[1, 1]] * 9, rows=rows), scene)
    assert figure["layout"]["yaxis"]["ticktext"][:2] == ["0 fc2", "1 fc2"]
    assert [shape["y0"] for shape in figure["layout"]["shapes"]] == [3.5]
    assert [name["text"] for name in figure["layout"]["annotations"]] == ["vision", "language"]
    assert figure["layout"]["meta"]["cells"]["rows"][5] == "language 1 fc2\nmodel.language.1.fc2"
    valid(figure)


def test_a_name_that_does_not_fit_its_tower_is_cut_or_left_out(scene):
    rows = [row("cross_attention", 0), row("cross_attention", 1), row("language", 0)]
    figure = heatmap_chart(heatmap([[1]] * 3, rows=rows), scene)
    assert [name["text"] for name in figure["layout"]["annotations"]] == ["cross"]


def test_heads_are_named(scene):
    figure = heatmap_chart(heatmap([[1]], rows=[row(head="min")]), scene)
    assert "(min over heads)" in figure["layout"]["meta"]["cells"]["rows"][0]


def test_a_row_without_labels_is_named_by_its_series(scene):
    bare = HeatmapRow(series="my_metric", module=None, tower=None, kind=None, layer=None)
    figure = heatmap_chart(heatmap([[1]], rows=[bare], metric="my_metric"), scene)
    assert figure["layout"]["meta"]["cells"]["rows"] == ["my_metric"]
    assert figure["layout"]["yaxis"]["ticktext"] == ["my_metric"]


@pytest.mark.parametrize("num_rows", [1, 2, 30, 48, 80, 200, 600])
def test_the_height_grows_with_the_rows_up_to_a_limit(scene, num_rows):
    layout = heatmap_chart(heatmap([[1]] * num_rows), scene)["layout"]
    plot = layout["height"] - layout["margin"]["t"] - layout["margin"]["b"]
    assert layout["height"] <= MAX_HEIGHT
    assert plot >= min(num_rows * 10, 830)
    labels = len(layout["yaxis"]["ticktext"])
    assert plot / labels >= 9


def test_steps_lie_under_those_of_the_panels(scene, make):
    figure = heatmap_chart(heatmap([[1]]), scene)
    assert figure["layout"]["xaxis"]["range"] == list(scene.x_range)
    assert (figure["layout"]["margin"]["l"], figure["layout"]["margin"]["r"]) == (64, 16)


def test_empty_heatmap_has_a_note(scene, valid):
    figure = heatmap_chart(heatmap([]), scene)
    assert figure["data"] == []
    assert re.match("no samples", figure["layout"]["annotations"][0]["text"])
    valid(figure)


def test_a_large_heatmap_travels_light(scene):
    figure = heatmap_chart(heatmap([[1.2345 + n / 97 for n in range(200)]] * 48), scene)
    assert len(json.dumps(figure, separators=(",", ":"))) < 150_000
