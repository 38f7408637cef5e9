"""The grid against a plain loop over samples."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabilizer.collector.services.views.grid import Grid, split_steps
from stabilizer.protocol.views import HeatmapStatistic

VALUES = st.one_of(st.floats(-1e6, 1e6, width=32), st.sampled_from([math.nan, math.inf, -math.inf]))
REDUCE = {
    "max": max,
    "min": min,
    "mean": lambda values: sum(values) / len(values),
    "last": lambda values: values[-1],
}


def slowly(samples, columns, statistic):
    """Cells of one row as (value or None, count of non-finite)."""
    cells = []
    for column in columns:
        inside = [v for s, v in samples if column.first_step <= s <= column.last_step]
        finite = [v for v in inside if math.isfinite(v)]
        value = None if not inside else REDUCE[statistic](finite) if finite else inside[-1]
        cells.append((value, len(inside) - len(finite)))
    return cells


def shown(grid):
    values, measured = grid.values()
    return [
        [
            (float(value) if is_there else None, int(bad))
            for value, is_there, bad in zip(*row, strict=True)
        ]
        for row in zip(values, measured, grid.nonfinite, strict=True)
    ]


@given(
    columns=st.integers(4, 9),
    statistic=st.sampled_from(["max", "min", "mean", "last"]),
    samples=st.lists(st.tuples(st.integers(0, 60), VALUES, st.booleans()), max_size=60),
    cut=st.integers(0, 60),
)
def test_cells_are_those_of_a_loop_over_samples(columns, statistic, samples, cut):
    samples = list({step: (step, value, there) for step, value, there in samples}.values())
    steps = np.array(sorted({step for step, *_ in samples}), np.int64)
    buckets = split_steps(steps, columns)
    grid = Grid(2, buckets, HeatmapStatistic(statistic))
    for part in (samples[:cut], samples[cut:]):
        grid.add(
            [1],
            np.array([step for step, *_ in part], np.int64),
            np.array([[value] for _, value, _ in part], np.float32).reshape(-1, 1),
            np.array([[there] for *_, there in part], bool).reshape(-1, 1),
        )
    measured = sorted((step, float(np.float32(v))) for step, v, there in samples if there)
    untouched, found = shown(grid)
    assert untouched == [(None, 0)] * len(buckets)
    for (value, bad), (expected, expected_bad) in zip(
        found, slowly(measured, buckets, statistic), strict=True
    ):
        assert bad == expected_bad
        assert (value is None) == (expected is None)
        if expected is not None:
            assert value == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("number", "max_columns", "widths"),
    [(0, 4, []), (1, 4, [1]), (4, 4, [1] * 4), (5, 4, [2, 2, 1]), (35_000, 200, [175] * 200)],
)
def test_columns_hold_equally_many_steps(number, max_columns, widths):
    steps = np.arange(number, dtype=np.int64)
    columns = split_steps(steps, max_columns)
    assert [column.last_step - column.first_step + 1 for column in columns] == widths


def test_columns_follow_the_steps_and_not_the_clock():
    columns = split_steps(np.array([1, 2, 3, 4, 1000, 2000]), 4)
    spans = [(column.first_step, column.last_step) for column in columns]
    assert spans == [(1, 2), (3, 4), (1000, 2000)]


def test_nothing_but_non_finite_shows_the_last_and_a_finite_one_hides_them():
    grid = Grid(1, split_steps(np.arange(4), 4)[:1], HeatmapStatistic.MAX)
    grid.add([0], np.zeros(2, np.int64), np.array([[np.nan], [np.inf]], np.float32), None)
    assert shown(grid) == [[(math.inf, 2)]]
    grid.add([0], np.zeros(1, np.int64), np.array([[3.0]], np.float32), None)
    assert shown(grid) == [[(3.0, 2)]]
