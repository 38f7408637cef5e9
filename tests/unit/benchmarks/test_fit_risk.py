"""The fit of the risk: it finds what made the data, and keeps the signs that features must have."""

import numpy as np
import pytest

from benchmarks.fit_risk import Samples, fit, label, predict, predict_left_out, skill
from benchmarks.lab.storage import StoredRun
from stabilizer.rules.risk.features import FEATURES


def drawn(weights, count=4000):
    noise = np.random.default_rng(0)
    features = noise.standard_normal((count, len(FEATURES)))
    chance = predict(features, -1.0, weights)
    positive = (noise.random(count) < chance).astype(float)
    names = np.full(count, "gpt")
    steps = np.arange(count)
    return Samples(features, positive, np.ones(count), names, steps % 2, names, steps)


def test_a_fit_finds_the_weights_that_made_the_data():
    made = np.array([1.5 if name == "rise" else 0.0 for name in FEATURES])
    samples = drawn(made)
    intercept, weights = fit(samples)
    assert intercept == pytest.approx(-1, abs=0.15)
    assert weights[0] == pytest.approx(1.5, abs=0.15)
    assert skill(samples, predict(samples.features, intercept, weights)) > 0.2


def test_a_sign_of_danger_never_lowers_the_risk():
    _, weights = fit(drawn(np.array([-1.5 if name == "rise" else 0.5 for name in FEATURES])))
    own = dict(zip(FEATURES, weights, strict=True))
    assert own["rise"] == 0
    assert own["healed"] == 0, "what has healed never raises it"
    assert own["age"] > 0.3


def test_a_family_is_judged_by_what_others_have_taught():
    samples = drawn(np.array([1.0 if name == "age" else 0.0 for name in FEATURES]))
    assert np.isnan(predict_left_out(samples, None)).all(), "there is no other"
    samples.families = np.where(samples.steps % 3 == 0, "gpt", "vit")
    assert np.isfinite(predict_left_out(samples, None)).all()
    late = predict_left_out(samples, 1)
    assert np.isfinite(late).tolist() == (samples.seeds == 1).tolist()


def test_a_step_is_judged_by_its_run_a_horizon_later():
    def run(kind, losses, *, environment=False):
        facts = {"steps": 360, "onset": 100, "kind": kind, "environment": environment}
        return StoredRun("x", facts, None, {"": dict(losses)})

    twin = run("healthy", [(20, 3.0), (360, 2.0)])
    lost = run("fault", [(20, 3.0), (100, 2.7), (200, 4.0), (260, 2.1), (360, 2.0)])
    assert label(twin, twin, 150) is False
    assert label(lost, twin, 90) is False, "nothing has happened yet"
    assert label(lost, twin, 110) is True
    assert label(lost, twin, 200) is False, "it has healed"
    assert label(lost, twin, 270) is None, "beyond the end"
    order = run("lookalike", lost.curves[""].items(), environment=True)
    assert label(order, twin, 110) is False
