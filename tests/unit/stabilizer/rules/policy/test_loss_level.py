from __future__ import annotations

import math

import pytest

from stabilizer.protocol.series import Catalog
from stabilizer.rules.policy.loss_level import LossLevel, loss_column


def level(*values: float) -> LossLevel:
    loss = LossLevel()
    for value in values:
        loss.observe(value, is_total=False, step=0)
    return loss


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (["lr", "loss", "loss_total"], (1, False)),
        (["loss_total"], (0, True)),
        (['loss{source="web"}'], None),
        (["lr"], None),
    ],
    ids=str,
)
def test_column_of_the_loss(series, expected):
    assert loss_column(Catalog.of(series)) == expected


def test_loss_is_preferred_to_the_total():
    loss = LossLevel()
    loss.observe(9.0, is_total=True, step=0)
    assert loss.level == 9.0
    loss.observe(2.0, is_total=False, step=0)
    loss.observe(9.0, is_total=True, step=0)
    assert loss.level == 2.0


def test_single_spike_does_not_move_the_level():
    assert level(2, 2, 2, 2, 50, 2, 2).level == 2


def test_loss_that_is_not_finite_has_no_level():
    loss = level(2, 2, math.nan)
    assert math.isnan(loss.level)
    assert math.isnan(loss.reference)
    assert not loss.is_finite
    assert level(2, math.inf, 2).level == 2


@pytest.mark.parametrize("reference", [2.0, 1e9, math.nan, math.inf])
def test_loss_that_is_not_finite_is_never_better(reference):
    for value in (math.nan, math.inf, -math.inf):
        assert not level(2, value).is_as_good_as(reference)
        assert not level(2, value).is_better_than(reference)


@pytest.mark.parametrize("reference", [math.nan, math.inf])
def test_any_finite_loss_is_better_than_none(reference):
    assert level(1e9).is_as_good_as(reference)
    assert level(1e9).is_better_than(reference)


@pytest.mark.parametrize(
    ("now", "good", "better"),
    [(2.0, True, False), (2.01, True, False), (2.1, False, False), (1.9, True, True)],
)
def test_one_percent_is_noise(now, good, better):
    assert level(now).is_as_good_as(2.0) == good
    assert level(now).is_better_than(2.0) == better


def test_loss_that_nobody_reports():
    loss = LossLevel()
    assert loss.is_finite
    assert loss.is_as_good_as(2.0)
    assert not loss.is_better_than(2.0)


def test_reference_after_a_jump_is_where_the_loss_stands():
    assert level(*[2.0] * 12, 5.0, 5.1, 5.2).reference == 5.1
    assert level(*[2.0] * 12, 1.0, 1.0, 1.0).reference == 2.0


def test_new_attempt_forgets():
    loss = level(2, 3)
    loss.begin_attempt(0)
    assert loss.recent == []
