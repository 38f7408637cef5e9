"""What every detector must do: silent when healthy, loud on its shape, unshaken by bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stabilizer.rules.detector_specs import DetectSpec
from stabilizer.rules.detectors import build_detector

ANY_FLOAT = st.floats(width=32, allow_nan=True, allow_infinity=True)


def test_healthy_series_is_not_flagged(case, feed):
    assert not feed(case.build(), case.healthy).any()


def test_known_shape_is_flagged(case, feed):
    detector = case.build()
    feed(detector, case.healthy)
    assert feed(detector, case.shape, 401).any()


def test_too_few_samples_are_unknown_not_healthy(learning):
    detector = learning.build()
    verdict = detector.update(1, learning.healthy[:1], np.array([True]))
    assert not verdict.known.any()
    assert np.isnan(verdict.score).all()


def test_series_are_judged_each_by_itself(case, feed):
    detector = case.build(3)
    feed(detector, np.repeat(case.healthy[:, None], 3, axis=1))
    rows = np.repeat(np.resize(case.healthy[-30:], len(case.shape))[:, None], 3, axis=1)
    rows[:, 1] = case.shape
    flags = feed(detector, rows, 401)
    assert flags[:, 1].any()
    assert not flags[:, [0, 2]].any()


def test_more_series_keep_the_state_of_the_first(case, feed):
    detector = case.build(1)
    feed(detector, case.healthy)
    detector.resize(4)
    rows = np.full((len(case.shape), 4), case.healthy[-1])
    rows[:, 0] = case.shape
    flags = feed(detector, rows, 401)
    assert flags[:, 0].any()
    assert not flags[:, 1:].any()


def test_constant_series_is_silent(learning, feed):
    assert not feed(learning.build(), np.full(500, learning.healthy[0])).any()


def test_nonfinite_samples_leave_no_trace(learning, feed):
    plain, disturbed = learning.build(), learning.build()
    feed(plain, learning.healthy)
    samples = np.insert(learning.healthy, [50, 120, 300], [np.nan, np.inf, -np.inf])
    assert not feed(disturbed, samples).any()
    expected = feed(plain, learning.shape, 500)
    assert (feed(disturbed, learning.shape, 500) == expected).all()


def test_nonfinite_samples_are_not_judged_by_comparison(learning, feed):
    detector = learning.build()
    feed(detector, learning.healthy)
    for value in (np.nan, np.inf, -np.inf):
        verdict = detector.update(500, np.array([value]), np.array([True]))
        assert not verdict.known.any()
        assert not verdict.flagged.any()


def test_unusable_samples_change_nothing(case, feed):
    detector = case.build()
    feed(detector, case.healthy)
    before = {name: array.copy() for name, array in detector.state().items()}
    values = np.array([case.shape[-1]])
    verdict = detector.update(500, values, np.array([False]))
    assert not verdict.known.any()
    for name, array in detector.state().items():
        if not name.endswith("since"):
            np.testing.assert_array_equal(array, before[name])


def test_anomaly_stays_flagged_since_it_is_not_learned(feed):
    rng = np.random.default_rng(0)
    healthy = 2 + 0.02 * rng.standard_normal(200)
    for detect in (
        {"robust_zscore": {"window": 64, "above": 8}},
        {"drift": {"window": 64, "above": 0.03}},
        {"collapse": {"window": 64, "below": 1.5}},
        {"spike": {"window": 64, "above": 8}},
    ):
        detector = build_detector(DetectSpec.model_validate({**detect}).detector)
        detector.resize(1)
        feed(detector, healthy)
        level = 0.5 if "collapse" in detect else 3.0
        flags = feed(detector, level + 0.02 * rng.standard_normal(100), 201)
        assert flags[20:].all(), detect


def test_new_level_is_accepted_after_the_patience(feed):
    for name, level in (("robust_zscore", 3.0), ("drift", 3.0), ("collapse", 0.5), ("spike", 3.0)):
        options = {"below": 1.5} if name == "collapse" else {"above": 8 if name != "drift" else 0.1}
        detect = {name: {"window": 32, "relearn": 40, **options}}
        detector = build_detector(DetectSpec.model_validate(detect).detector)
        detector.resize(1)
        rng = np.random.default_rng(0)
        feed(detector, 2 + 0.02 * rng.standard_normal(200))
        flags = feed(detector, level + 0.02 * rng.standard_normal(300), 201)
        assert flags[10:40].any(), name
        assert not flags[120:].any(), name


def test_new_phase_begins_anew(learning, feed):
    detector = learning.build()
    feed(detector, learning.healthy)
    detector.forget()
    verdict = detector.update(401, learning.shape[-1:], np.array([True]))
    assert not verdict.known.any()


def test_rewind_forgets_what_came_after(learning, feed):
    straight, rewound = learning.build(), learning.build()
    feed(straight, learning.healthy[:300])
    straight.rewind(300)
    feed(rewound, learning.healthy[:300])
    feed(rewound, learning.healthy[300:330] * 1.001, 301)
    rewound.rewind(300)
    ring = next(name for name in straight.state() if name.endswith("ring.count"))
    assert rewound.state()[ring][0] <= straight.state()[ring][0]
    steps = next(name for name in straight.state() if name.endswith("ring.steps"))
    assert rewound.state()[steps].max() <= 300
    feed(rewound, learning.healthy[300:], 301)
    assert feed(rewound, learning.shape, 401).any()


def test_lower_level_of_an_abandoned_branch_is_forgotten(feed):
    """After a deep rollback the loss is higher than it was: that is no drift."""
    detect = DetectSpec.model_validate({"drift": {"window": 100, "above": 0.03}})
    detector = build_detector(detect.detector)
    detector.resize(1)
    loss = 4 * np.exp(-np.arange(300) / 300) + 2
    feed(detector, loss)
    detector.rewind(200)
    assert not feed(detector, loss[200:], 201).any()


@pytest.mark.parametrize("cut", [1, 7, 63, 64, 65, 200, 410, 430])
def test_saved_and_loaded_continues_the_same(case, feed, cut):
    samples = np.concatenate([case.healthy, case.shape])
    cut = min(cut, len(samples) - 1)
    whole, first, second = case.build(), case.build(), case.build()
    expected = feed(whole, samples)
    feed(first, samples[:cut])
    second.load({name: array.copy() for name, array in first.state().items()})
    assert (feed(second, samples[cut:], cut + 1) == expected[cut:]).all()
    for name, array in whole.state().items():
        np.testing.assert_array_equal(second.state()[name], array)


def test_state_of_another_window_is_refused(learning):
    detector = learning.build()
    state = dict(detector.state())
    name = next(name for name in state if name.endswith("ring.values"))
    with pytest.raises(ValueError, match="window"):
        detector.load({**state, name: np.zeros((1, 5), np.float32)})


def test_incomplete_state_is_refused(learning):
    with pytest.raises(KeyError):
        learning.build().load({})


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(stream=st.lists(st.tuples(ANY_FLOAT, ANY_FLOAT), max_size=120))
def test_any_stream_is_survived(case, stream):
    detector = case.build(2)
    with np.errstate(all="ignore"):
        for step, row in enumerate(stream, start=1):
            verdict = detector.update(
                step, np.array(row, np.float64), np.array([True, step % 3 > 0])
            )
            assert not (verdict.flagged & ~verdict.known).any()
            assert not np.isnan(verdict.score[verdict.known]).any()


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(exponent=st.integers(-20, 20))
@pytest.mark.parametrize("name", ["robust_zscore", "drift", "spike", "linear"])
def test_verdicts_do_not_depend_on_the_unit(cases, feed, name, exponent):
    """Powers of two scale floats exactly, so the verdicts must be the same to the bit."""
    case = cases[name]
    samples = np.concatenate([case.healthy, case.shape])
    expected = feed(case.build(), samples)
    if name == "robust_zscore":  # on a log scale a unit is a shift, exact only in the limit
        exponent = exponent // 4
        flags = feed(case.build(), samples * 2.0**exponent)
        assert (flags == expected).mean() > 0.99
        return
    assert (feed(case.build(), samples * 2.0**exponent) == expected).all()
