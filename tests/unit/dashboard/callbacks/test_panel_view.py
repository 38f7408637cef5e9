"""Queries of a page: points, steps, and whether new samples are in view."""

import math

import pytest

from dashboard.callbacks.panels import PanelView, read_zoom, shows_newest
from stabilizer.protocol.queries import SeriesQuery


@pytest.mark.parametrize(
    ("width", "points"), [(1, 200), (200, 200), (731, 731), (4000, 4000), (10**6, 4000)]
)
def test_as_many_points_as_pixels_within_bounds(width, points):
    assert PanelView(width=width).max_points == points


@pytest.mark.parametrize(
    ("zoom", "steps"),
    [
        (None, {}),
        ((10.2, 20.7), {"from_step": 10, "to_step": 21}),
        ((-30.0, 20.0), {"from_step": 0, "to_step": 20}),
        ((-30.0, -20.0), {"from_step": 0, "to_step": 0}),
        ((1e300, 1e301), {"from_step": 2**53, "to_step": 2**53}),
    ],
    ids=str,
)
def test_a_range_is_asked_for_in_whole_steps_that_the_collector_takes(zoom, steps):
    asked = PanelView(width=500, zoom=zoom).steps
    assert asked == steps
    SeriesQuery(series=("loss",), **asked)


@pytest.mark.parametrize(
    "stored",
    [
        None,
        [],
        [1],
        [1, 2, 3],
        [None, None],
        ["a", "b"],
        [2, 1],
        [1, 1],
        [math.nan, 2],
        [1, math.inf],
        [1, 10**400],
        3,
        {"first": 1, "last": 2},
    ],
    ids=repr,
)
def test_what_is_no_range_is_no_zoom(stored):
    assert read_zoom(stored) is None


def test_a_range_is_a_zoom():
    assert read_zoom([3, 7.5]) == (3.0, 7.5)


@pytest.mark.parametrize(
    ("zoom", "seen"),
    [(None, True), ((0.0, 99.9), False), ((0.0, 100.0), True), ((200.0, 300.0), True)],
)
def test_new_samples_are_seen_by_who_has_not_zoomed_into_the_past(zoom, seen):
    assert shows_newest(zoom, 100) is seen
