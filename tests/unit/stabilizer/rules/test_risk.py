"""The risk: its features follow a run, restart where it does, and outlive a save."""

import json
import math

import numpy as np
import pytest

from stabilizer.protocol.series import Catalog, SeriesKey
from stabilizer.rules.risk.features import FEATURES, RiskFeatures
from stabilizer.rules.risk.model import RiskModel

EVERY_STEP = Catalog(
    series=(
        SeriesKey(metric="loss"),
        SeriesKey(metric="grad_norm"),
        SeriesKey(metric="lr", labels={"group": "0"}),
        SeriesKey(metric="loss", labels={"source": "web"}),
        SeriesKey(metric="loss", labels={"source": "books"}),
    )
)
MODULES = Catalog(
    series=tuple(
        SeriesKey(metric=metric, labels={"module": f"layers.{layer}", "layer": str(layer)})
        for metric in ("activation_rms", "attention_entropy")
        for layer in range(4)
    )
)


def play(reader, steps, *, loss=2.0, norm=1.0, rate=1e-3, layers=1.0, entropy=0.8, seed=0):
    noise = np.random.default_rng(seed)
    for step in steps:
        jitter = 1 + 0.02 * noise.standard_normal(5)
        row = np.array([loss, norm, rate, loss, loss]) * jitter
        row[2] = rate
        reader.observe(EVERY_STEP, step, row.astype(np.float32))
        if step % 5 == 0:
            inside = np.array([layers] * 4 + [entropy] * 4) * (1 + 0.01 * jitter[0])
            reader.observe(MODULES, step, inside.astype(np.float32))


def named(reader):
    return dict(zip(FEATURES, reader.features(), strict=True))


@pytest.fixture
def reader():
    reader = RiskFeatures()
    assert not reader.ready
    play(reader, range(1, 121))
    assert reader.ready
    return reader


def test_a_calm_run_has_moved_nowhere(reader):
    own = named(reader)
    assert own["rise"] < 1.5
    assert own["age"] == own["healed"] == own["rate"] == own["nonfinite"] == 0
    assert own["layers"] == 0
    assert own["inside"] == 1


def test_a_rise_has_a_height_an_age_and_heals(reader):
    play(reader, range(121, 161), loss=4.0, norm=9.0)
    high = named(reader)
    assert high["rise"] > 3
    assert high["relative_rise"] > 2
    assert high["age"] > 1.5
    assert high["gradient_rise"] == pytest.approx(math.log(9), abs=0.3)
    assert high["sources"] == 1
    play(reader, range(161, 181), loss=2.5)
    healing = named(reader)
    assert healing["healed"] == pytest.approx(0.75, abs=0.1)
    assert healing["trend"] < 0
    play(reader, range(181, 221))
    assert named(reader)["age"] == 0


def test_layers_that_have_moved_count_until_the_run_is_rewound(reader):
    play(reader, range(121, 141), layers=5.0, entropy=0.1)
    assert named(reader)["layers"] == 1
    assert named(reader)["entropy_fall"] == pytest.approx(0.875, abs=0.02)
    reader.rewind(100)
    assert named(reader)["layers"] == 0
    assert named(reader)["entropy_fall"] == pytest.approx(0, abs=0.02)


def test_a_rate_that_jumps_counts_until_it_is_back(reader):
    play(reader, range(121, 131), rate=2e-2)
    assert named(reader)["rate"] == pytest.approx(math.log(20), abs=0.01)
    play(reader, range(131, 136))
    assert named(reader)["rate"] == 0


def test_losses_that_are_not_finite_count_unless_the_step_was_left_out(reader):
    reader.observe(EVERY_STEP, 121, np.array([math.nan] * 5, np.float32))
    assert named(reader)["nonfinite"] == 1
    skipped = Catalog(series=(SeriesKey(metric="loss"), SeriesKey(metric="step_skipped")))
    calm = RiskFeatures()
    calm.observe(skipped, 1, np.array([math.nan, 1], np.float32))
    assert named(calm)["nonfinite"] == 0
    assert named(calm)["skipped"] > 0


def test_a_saved_state_continues_bit_for_bit(reader):
    play(reader, range(121, 135), loss=3.0)
    head, arrays = reader.state()
    again = RiskFeatures()
    again.load(json.loads(json.dumps(head)), {name: each.copy() for name, each in arrays.items()})
    for each in (reader, again):
        play(each, range(135, 170), loss=3.3, seed=1)
    assert again.features() == reader.features()


def test_a_series_measured_at_every_tenth_step_has_the_same_features(reader):
    rare = RiskFeatures()
    play(rare, range(10, 1210, 10))
    play(rare, range(1210, 1410, 10), loss=4.0, norm=9.0)
    own = named(rare)
    assert own["rise"] > 3
    assert own["relative_rise"] == pytest.approx(math.log1p(10), abs=0.3)


def test_the_model_names_what_raises_the_risk():
    weights = tuple(1.0 if name in ("rise", "rate") else 0.0 for name in FEATURES)
    model = RiskModel(-2.0, weights)
    values = [3.0 if name == "rise" else 1.0 if name == "rate" else 0.0 for name in FEATURES]
    risk = model.assess(values)
    assert risk.probability == pytest.approx(1 / (1 + math.exp(-2)))
    assert [name for name, _ in risk.signals] == ["rise", "rate"]
