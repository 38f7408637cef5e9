import math

import numpy as np
import pytest

from stabilizer.agent.probes.record import AttentionSummaries, Mean, RootMeanSquare, Slot

A, B, C = Slot(1, 0), Slot(1, 1), Slot(1, 2)


def _parts(*parts):
    return [np.array(part, np.float64) for part in parts]


def test_means_over_microbatches():
    reading = Mean(A, parts=(0, 2), numbers=(6.0,))
    assert reading.read(_parts([1.0], [50.0], [2.0])) == [(A, 3.0)]
    ((_, value),) = Mean(A, parts=(0, 1)).read(_parts([1.0], [math.nan]))
    assert math.isnan(value)


def test_root_mean_square_is_over_all_values():
    values = [np.array([3.0, 4.0]), np.array([1.0, 2.0, 2.0])]
    norms = [[float(np.linalg.norm(v))] for v in values]
    expected = math.sqrt(np.concatenate(values).__pow__(2).mean())
    assert RootMeanSquare(A, (0, 1), (2, 3)).read(_parts(*norms)) == [(A, pytest.approx(expected))]
    ((_, value),) = RootMeanSquare(A, (0,), (2,)).read(_parts([math.inf]))
    assert value == math.inf
    ((_, value),) = RootMeanSquare(A, (0, 1), (2, 2)).read(_parts([math.inf], [math.nan]))
    assert math.isnan(value)


def test_attentions_weigh_microbatches_by_their_queries():
    first = [1.0, 2.0, 2, 4, 7.5, 12]  # heads: 0.5 and 0.5; 2 and 4 queries
    second = [0.0, 1.0, 2, 1, -1.0, 9]  # heads: 0.0 and 1.0
    found = dict(AttentionSummaries(A, B, C, (0, 1)).read(_parts(first, second)))
    assert found == {A: 0.25, B: pytest.approx((0.25 + 0.6) / 2), C: 7.5}


def test_attentions_without_a_query_that_counts():
    reading = AttentionSummaries(A, B, C, (0,))
    assert reading.read(_parts([0, 0, 0, 0, -math.inf, 0])) == []
    assert reading.read(_parts([0, 0, 0, 0, 3.0, 4])) == [(C, 3.0)]
    half = dict(
        AttentionSummaries(A, B, C, (0, 1)).read(
            _parts([0, 0, 0, 0, -math.inf, 0], [1, 0, 2, 0, 5.0, 4])
        )
    )
    assert half == {A: 0.5, B: 0.5, C: 5.0}


def test_attentions_show_nan_in_whatever_microbatch():
    clean, broken = [1.0, 2.0, 2, 4, 7.5, 12], [1.0, math.nan, 2, 4, math.nan, 12]
    for order in ((clean, broken), (broken, clean)):
        found = dict(AttentionSummaries(A, B, C, (0, 1)).read(_parts(*order)))
        assert all(math.isnan(value) for value in found.values())
        assert len(found) == 3
    infinite = [1.0, 2.0, 2, 4, math.inf, 12], [1.0, 2.0, 2, 4, -math.inf, 12]
    found = dict(AttentionSummaries(A, B, C, (0, 1)).read(_parts(*infinite)))
    assert found[C] == math.inf
