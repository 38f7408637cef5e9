"""Forecasts: a line through recent levels crosses a bound within so many steps."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from stabilizer.rules.detector_specs import ForecastSpec
from stabilizer.rules.detectors.forecast import Forecast

STEPS = np.arange(1, 2001)
NOISE = np.random.default_rng(0).standard_normal(2000)


def forecast_of(**spec: object) -> Forecast:
    detector = Forecast(ForecastSpec(**{"within": 500, "window": 240, **spec}))
    detector.resize(1)
    return detector


def flagged(values: np.ndarray, every: int = 1, **spec: object) -> list[int]:
    """Steps at which a series is flagged that is measured every so many steps."""
    detector, present = forecast_of(**spec), np.ones(1, np.bool_)
    steps = range(every, len(values) + 1, every)
    with np.errstate(all="ignore"):
        return [
            step for step in steps if detector.update(step, values[[step - 1]], present).flagged[0]
        ]


LOGITS = {"above": 1e4, "scale": "log"}
GROWING = 100 * np.exp(STEPS / 400 + 0.1 * NOISE)  # reaches 10,000 at step 1842
SCALE = {"below": 2.0, "scale": "log"}


@pytest.mark.parametrize("every", [1, 5, 10])
def test_growth_is_seen_in_time_at_any_sampling(every):
    first = flagged(GROWING, every, **LOGITS)[0]
    assert 1842 - 500 - 60 <= first <= 1842 - 500 + 60


def test_loss_scale_that_halves_again_and_again():
    halvings = 2.0 ** (16 - STEPS // 100)  # at 2 from step 1500 on
    first = flagged(halvings, window=480, **SCALE)[0]
    assert 800 < first < 1300


@pytest.mark.parametrize(
    ("values", "spec"),
    [
        (np.full(2000, 9000.0), LOGITS),  # close, but not on its way
        (9000 * np.exp(0.05 * NOISE), LOGITS),
        (8000 * (1 - np.exp(-STEPS / 200)), {"above": 1e4}),  # levels off below
        (2.0 ** np.where(STEPS % 200 == 0, 15, 16), SCALE),  # halves, and doubles again
        (0.6 - STEPS / 20000, {"below": 0.2}),  # falls, but not within 500 steps
        (np.where(STEPS == 1000, 1e6, 100.0), LOGITS),  # a single spike
        (-GROWING, LOGITS),  # no logarithm
    ],
)
def test_silence(values, spec):
    assert flagged(values, **spec) == []


def test_a_series_beyond_the_bound_is_flagged_until_it_returns():
    values = np.where((STEPS > 500) & (STEPS < 1500), 12.0, 8.0)
    steps = flagged(values, above=10, within=50)
    assert (400 < steps[0] < 800, 1400 < steps[-1] < 1800) == (True, True)


def test_score_is_the_value_expected():
    detector, present = forecast_of(above=1000, within=100), np.ones(1, np.bool_)
    for step in range(1, 401):
        verdict = detector.update(step, np.array([2.0 * step]), present)
        if verdict.known[0]:
            last = (step, verdict.score[0])
    assert last[1] == pytest.approx(2 * (last[0] + 100), rel=0.03)
    assert detector.threshold == 1000


def test_gaps_and_samples_that_are_not_finite():
    values = GROWING.copy()
    values[1300:1310], values[1320] = np.nan, np.inf
    plain, disturbed = flagged(GROWING, **LOGITS), flagged(values, **LOGITS)
    assert abs(plain[0] - disturbed[0]) <= 20


def test_a_jump_of_10000_steps_makes_no_trend():
    detector, present = forecast_of(above=3.0, within=100), np.ones(1, np.bool_)
    steps = [*range(1, 400), *range(10_400, 10_800)]
    level = {step: 1.0 + (step > 5000) + 0.01 * NOISE[step % 2000] for step in steps}
    assert not any(
        detector.update(step, np.array([level[step]]), present).flagged[0] for step in steps
    )


def test_rewind_forgets_the_trend():
    detector, present = forecast_of(**LOGITS), np.ones(1, np.bool_)
    for step in range(1, 1501):
        detector.update(step, GROWING[[step - 1]], present)
    detector.rewind(1400)
    assert detector.state()["ends"][0, -1] <= 1400
    with np.errstate(all="ignore"):
        after = [detector.update(at, GROWING[[1399]], present) for at in range(1401, 1900)]
    assert not any(verdict.flagged[0] for verdict in after)


@pytest.mark.parametrize(
    "spec",
    [
        {"within": 10},
        {"within": 10, "above": 1.0, "below": 0.0},
        {"within": 10, "below": 0.0, "scale": "log"},
        {"within": 0, "above": 1.0},
        {"within": 10, "above": 1.0, "window": 5},
    ],
)
def test_mistakes(spec):
    with pytest.raises(ValidationError):
        ForecastSpec(**spec)
