"""The three fates of a rise, whatever the scale, the sampling, and the start."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from stabilizer.rules.detector_specs import RiseSpec
from stabilizer.rules.detectors.rise import Rise

START = 1500
"""The step at which something happens."""


def loss(after: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> np.ndarray:
    """A loss of 3000 steps that falls to 2; from START on something is added."""
    steps = np.arange(3000)
    noise = 0.02 * np.random.default_rng(seed).standard_normal(len(steps))
    added = np.where(steps >= START, after(np.maximum(steps - START, 0)), 0.0)
    return 2 + 3 * np.exp(-steps / 150) + noise + added


def growing(since: np.ndarray) -> np.ndarray:
    return 0.002 * since


def flat(since: np.ndarray) -> np.ndarray:
    return np.full(len(since), 0.4)


def healing(since: np.ndarray) -> np.ndarray:
    return 1.5 * np.exp(-since / 12)


def nothing(since: np.ndarray) -> np.ndarray:
    return np.zeros(len(since))


def flagged(values: np.ndarray, every: int = 1, **spec: object) -> list[int]:
    """Steps at which a series is flagged that is measured every so many steps."""
    detector = Rise(RiseSpec(**{"above": 6.0, **spec}))
    detector.resize(1)
    present, steps = np.ones(1, np.bool_), range(every, len(values), every)
    with np.errstate(all="ignore"):
        return [step for step in steps if detector.update(step, values[[step]], present).flagged[0]]


@pytest.mark.parametrize("every", [1, 2, 5, 10])
@pytest.mark.parametrize("after", [growing, flat])
def test_a_rise_that_stays_is_flagged_alike_at_any_sampling(after, every):
    first = flagged(loss(after), every)[0]
    assert START < first <= START + 150


@pytest.mark.parametrize("every", [1, 5, 10])
def test_a_spike_that_heals_is_hardly_flagged(every):
    steps = flagged(loss(healing), every)
    assert not steps or steps[-1] - steps[0] < 30


@pytest.mark.parametrize("every", [1, 5, 10])
def test_progress_is_silent(every):
    assert flagged(loss(nothing), every) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda values: 10 * values,
        lambda values: 0.1 * values,
        lambda values: values - 2,  # ends at zero
        lambda values: values - 10,  # below zero
        lambda values: np.round(values / 0.0078) * 0.0078,  # the steps of bf16
        lambda values: np.concatenate([np.linspace(12, values[0], 100), values[100:]]),
    ],
    ids=["x10", "x0.1", "near zero", "negative", "bf16", "steep start"],
)
def test_scale_and_level_change_nothing(change):
    assert flagged(change(loss(nothing))) == []
    assert START < flagged(change(loss(flat)))[0] <= START + 50


def test_a_short_run_is_judged_from_a_few_dozen_steps_on():
    values = loss(flat)[START - 60 : START + 40]
    assert 60 < flagged(values, smooth=8, window=256)[0] <= 75


def test_a_constant_has_no_noise_and_is_not_judged():
    detector = Rise(RiseSpec())
    detector.resize(1)
    one = np.ones(1, np.bool_)
    assert not any(detector.update(step, np.zeros(1), one).known[0] for step in range(1, 400))


def test_slow_healing_does_not_excuse():
    """As after a resume with lost weights: the loss falls, but is not back in time."""
    steps = flagged(loss(lambda since: 8 * np.exp(-since / 400)))
    assert [step for step in steps if START + 40 < step < START + 100]


def test_a_new_level_is_accepted_in_the_end():
    steps = flagged(loss(flat), relearn=500)
    assert steps[-1] < START + 650


def test_down_is_a_direction():
    fallen = loss(lambda since: np.full(len(since), -0.4))[START - 500 :]
    assert flagged(fallen) == []
    assert 500 < flagged(fallen, direction="down")[0] <= 550
    assert 500 < flagged(fallen, direction="both")[0] <= 550
