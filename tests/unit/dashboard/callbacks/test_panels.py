"""Series of each panel: order and labels."""

import pytest

from dashboard import ids
from dashboard.callbacks.panels import choose_lines
from dashboard.figures.palette import LINE_COLOURS

MODULE = 'activation_rms{kind="o_proj",layer="0",module="a.o",tower="language"}'


def sources(*names, metric="loss"):
    return [f'{metric}{{source="{name}"}}' for name in names]


def labels(lines, panel):
    return [line.label for line in lines[panel]]


def test_each_metric_has_its_panel():
    series = [
        "step_seconds",
        MODULE,
        'lr{group="0"}',
        "lr_scale",
        "z_loss",
        'grad_norm{module="a.o"}',
        "grad_norm",
        "loss_total",
        "loss",
    ]
    lines = choose_lines(series, [MODULE])
    assert {panel: [line.series for line in of_panel] for panel, of_panel in lines.items()} == {
        ids.CHART_LOSS: ["loss"],
        ids.CHART_GRADIENT: ["grad_norm"],
        ids.CHART_RATE: ['lr{group="0"}', "lr_scale"],
        ids.CHART_Z_LOSS: ["z_loss"],
        ids.CHART_PICKED: [MODULE],
    }


@pytest.mark.parametrize("series", [[], [MODULE], ["lr_scale_of_mine", "losses"]], ids=str)
def test_a_run_without_any_of_them_has_every_panel_empty(series):
    assert choose_lines(series, ["gone"]) == dict.fromkeys(ids.PANELS, ())


def test_the_sum_comes_before_its_sources():
    lines = choose_lines([*sources("web", "code"), "loss"], [])
    assert labels(lines, ids.CHART_LOSS) == ["all", "code", "web"]
    assert [line.colour for line in lines[ids.CHART_LOSS]] == list(LINE_COLOURS[:3])


def test_number_of_lines_is_limited():
    lines = choose_lines([*sources(*"jihgfedcba"), "loss"], [])
    assert labels(lines, ids.CHART_LOSS) == ["all", *"abcdefg"]


def test_groups_are_sorted_numerically():
    series = [f'lr{{group="{number}"}}' for number in range(12)]
    lines = choose_lines(sorted(series), [])
    assert labels(lines, ids.CHART_RATE) == [str(number) for number in range(8)]


def test_rate_without_groups_is_labelled_by_its_metric():
    lines = choose_lines(["lr", "lr_scale"], [])
    rate, scale = lines[ids.CHART_RATE]
    assert (rate.label, rate.secondary) == ("lr", False)
    assert (scale.label, scale.secondary) == ("lr_scale", True)
    assert rate.colour != scale.colour


def test_a_scale_without_a_rate_is_drawn_all_the_same():
    (scale,) = choose_lines(["lr_scale"], [])[ids.CHART_RATE]
    assert scale.secondary


def test_of_a_job_that_gives_only_what_it_backpropagates_that_is_the_loss():
    lines = choose_lines(["loss_total", *sources("web", metric="loss_total")], [])
    assert [line.series for line in lines[ids.CHART_LOSS]] == [
        "loss_total",
        'loss_total{source="web"}',
    ]
    assert labels(lines, ids.CHART_LOSS)[0] == "loss_total"


def test_series_of_ranks_and_modules_are_not_taken_for_the_whole():
    series = ['loss{rank="0"}', 'loss{rank="1",source="web"}', 'grad_norm{rank="0"}']
    lines = choose_lines(series, [])
    assert not any(lines[panel] for panel in ids.PANELS)


@pytest.mark.parametrize(
    ("series", "label"),
    [
        (r'loss{source="say \"so\", twice"}', 'say "so", twice'),
        (r'loss{source="C:\\data"}', r"C:\data"),
        ('loss{source="<b>bold</b>"}', "<b>bold</b>"),
        ('loss{source="\u4f60\u597d 2"}', "\u4f60\u597d 2"),
        ('loss{source=""}', 'loss{source=""}'),
        ('loss{source=" "}', 'loss{source=" "}'),
        (f'loss{{source="{"9" * 400}"}}', "9" * 400),
    ],
)
def test_odd_names_are_read_as_they_were_meant(series, label):
    assert labels(choose_lines([series], []), ids.CHART_LOSS) == [label]


def test_picked_series_keep_order_and_full_name():
    lines = choose_lines(["loss", MODULE, "grad_norm"], ["grad_norm", "gone", MODULE])
    assert labels(lines, ids.CHART_PICKED) == ["grad_norm", MODULE]
    assert labels(lines, ids.CHART_GRADIENT) == ["grad_norm"]
