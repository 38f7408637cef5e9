"""Level shifts: a step that stays and is flat, and everything that is none."""

from __future__ import annotations

import numpy as np
import pytest

from stabilizer.rules.detector_specs import ShiftSpec
from stabilizer.rules.detectors.shift import Shift

STEPS = np.arange(1, 2001)
START = 1000
SINCE = np.maximum(STEPS - START, 0)
LOSS = 2 + 2 * np.exp(-STEPS / 150) + 0.02 * np.random.default_rng(1).standard_normal(2000)


def flagged(values: np.ndarray, every: int = 1, **spec: object) -> list[int]:
    """Steps at which a series is flagged that is measured every so many steps."""
    detector, present = Shift(ShiftSpec(**spec)), np.ones(1, np.bool_)
    detector.resize(1)
    steps = range(every, len(values) + 1, every)
    with np.errstate(all="ignore"):
        return [
            step for step in steps if detector.update(step, values[[step - 1]], present).flagged[0]
        ]


STEPPED = LOSS + 0.3 * (SINCE > 0)


@pytest.mark.parametrize("every", [1, 5, 10])
def test_a_step_is_seen_once_it_has_held_at_any_sampling(every):
    steps = flagged(STEPPED, every)
    assert START + 40 <= steps[0] <= START + 90
    assert START + 200 <= steps[-1] <= START + 300  # then the level is accepted


@pytest.mark.parametrize(
    "added",
    [
        np.zeros(2000),
        0.003 * SINCE,  # grows
        0.02 * np.minimum(SINCE, 400),
        0.5 * np.exp(-SINCE / 40) * (SINCE > 0),  # heals
        -0.5 * (SINCE > 0),  # down
        2.0 * (SINCE == 5),  # a single spike
        0.3 * ((SINCE > 0) & (SINCE < 20)),  # has not held
    ],
)
def test_no_step(added):
    assert flagged(LOSS + added) == []


def test_a_step_that_heals_or_grows_is_no_longer_flagged():
    for after in (-0.3, 0.6):
        steps = flagged(STEPPED + after * (SINCE > 100), keep=1000)
        assert steps[0] >= START + 40
        assert steps[-1] <= START + 160


@pytest.mark.parametrize(
    ("values", "spec"),
    [
        (5 - STEPPED, {"direction": "down"}),
        (5 - STEPPED, {"direction": "both"}),
        (10 * STEPPED, {}),
        (STEPPED - 2, {"floor": 0.02}),  # near zero
        (np.exp(STEPPED), {"scale": "log"}),
    ],
)
def test_direction_and_scale(values, spec):
    assert START + 40 <= flagged(values, **spec)[0] <= START + 90


def test_the_end_of_a_fast_fall_is_no_step_up():
    knee = np.where(STEPS < START, 10 - 0.005 * STEPS, 5.0)
    noise = 0.01 * np.random.default_rng(2).standard_normal(2000)
    assert flagged(knee + noise, direction="both") == []


def test_least_size():
    assert flagged(STEPPED, least=0.2) == []
    assert flagged(STEPPED, least=0.1)


def test_gaps_and_samples_that_are_not_finite():
    values = STEPPED.copy()
    values[1010:1015], values[1030], values[400] = np.nan, np.inf, -np.inf
    assert flagged(values)[0] == pytest.approx(flagged(STEPPED)[0], abs=20)


@pytest.mark.parametrize(("to_step", "stays"), [(1020, False), (1090, True)])
def test_rewind(to_step, stays):
    detector, present = Shift(ShiftSpec()), np.ones(1, np.bool_)
    detector.resize(1)
    for step in range(1, 1101):
        detector.update(step, STEPPED[[step - 1]], present)
    detector.rewind(to_step)
    healthy = [detector.update(s, LOSS[[s - 1]], present) for s in range(to_step + 1, 1500)]
    assert np.isnan(detector.state()["base"][0])
    assert any(verdict.flagged[0] for verdict in healthy[:20]) == stays
    assert not any(verdict.flagged[0] for verdict in healthy[60:])
