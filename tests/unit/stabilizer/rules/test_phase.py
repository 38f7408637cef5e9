"""Phases of a run: by the loss's own pace and noise, whatever its unit and sampling."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from pydantic import TypeAdapter

from stabilizer.errors import RuleFileError
from stabilizer.protocol.batches import Marker, MarkerKind
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.series import Catalog
from stabilizer.rules.brain import Brain, PolicyContext
from stabilizer.rules.loader import load_rules
from stabilizer.rules.phase import PhaseTracker

STEPS = np.arange(1, 3001)
NOISE = 0.02 * np.random.default_rng(0).standard_normal(3000)
LOSS = 2 + 3 * np.exp(-STEPS / 150) + NOISE
SINCE = np.maximum(STEPS - 2000, 0)


def track(values: np.ndarray, every: int = 1) -> PhaseTracker:
    tracker = PhaseTracker()
    for step in range(every, len(values) + 1, every):
        tracker.observe(step, float(values[step - 1]), is_total=False)
    return tracker


def phases(values: np.ndarray, every: int = 1) -> list[str]:
    return [str(phase) for _, phase in track(values, every).changes]


@pytest.mark.parametrize("every", [1, 5, 10])
@pytest.mark.parametrize("unit", [1.0, 0.01, 1000.0])
def test_the_three_phases_of_a_run_that_diverges(every, unit):
    run = track(unit * (LOSS + 0.002 * SINCE), every)
    assert [str(phase) for _, phase in run.changes] == ["falling", "honeymoon", "diverging"]
    assert 2000 < run.changes[-1][0] < 2150


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize(
    ("values", "last"),
    [
        (LOSS, "honeymoon"),
        (LOSS + 1.5 * np.exp(-SINCE / 12) * (SINCE > 0), "honeymoon"),  # heals
        (LOSS + 9.0 * (SINCE == 1), "honeymoon"),  # a single sample
        (LOSS - 2, "honeymoon"),  # around zero
        (8 - np.log(STEPS) + NOISE, "falling"),
        (2 + NOISE, "honeymoon"),
        (np.full(3000, 2.0), "honeymoon"),
        (LOSS[:60], None),
    ],
)
def test_runs_that_do_not_diverge(values, last, every):
    seen = phases(values, every)
    assert "diverging" not in seen
    assert (seen[-1] if seen else None) == last


def test_plateau_stays_diverged_until_it_is_accepted():
    late = np.concatenate([LOSS, 4 + NOISE, 4 + NOISE])
    run = track(late)
    assert [str(phase) for _, phase in run.changes][-2:] == ["diverging", "honeymoon"]
    assert run.changes[-1][0] - run.changes[-2][0] > 1500


def test_loss_that_is_not_finite_diverges():
    values = LOSS.copy()
    values[2500], values[2600:2604] = np.nan, np.inf  # skipped by a scaler
    assert "diverging" not in phases(values)
    values[2700:2706] = np.nan
    run = track(values)
    assert (2705, "diverging") in run.changes


def test_total_loss_counts_where_there_is_no_other():
    tracker = PhaseTracker()
    for step in range(1, 200):
        tracker.observe(step, 5.0, is_total=True)
    assert tracker.phase == "honeymoon"
    tracker.observe(200, 2.0, is_total=False)
    assert tracker.phase == "learning"
    tracker.observe(201, 5.0, is_total=True)
    assert not tracker.is_total


def test_rewind_returns_to_the_phase_of_then():
    run = track((LOSS + 0.002 * SINCE)[:2400])
    assert run.phase == "diverging"
    run.rewind(1990)
    assert run.phase == "honeymoon"
    for step in range(1991, 3000):
        run.observe(step, float(LOSS[step]), is_total=False)
    assert run.phase == "honeymoon"


def test_saved_and_loaded_it_continues_the_same():
    saved = TypeAdapter(PhaseTracker)
    whole = PhaseTracker()
    first = PhaseTracker()
    for step, value in enumerate(LOSS + 0.002 * SINCE, start=1):
        whole.observe(step, float(value), is_total=False)
        first.observe(step, float(value), is_total=False)
        if step % 37 == 0:
            first = saved.validate_json(saved.dump_json(first))
    assert first == whole


def test_state_stays_small():
    run = track(np.resize(LOSS, 60_000))
    assert max(len(run.recent), len(run.sparse), len(run.changes)) <= 40


CATALOG = Catalog.of(["loss", "rms"])
POLICY = {"ladder": ["pause"], "act_on": {}}
RULES = [
    {
        "name": "high",
        "select": {"metric": "rms"},
        "detect": {"threshold": {"above": 0}},
        "severity": "notice",
        "signal": True,
    },
    {
        "name": "late",
        "when": {"all": [{"rule": "high"}, {"not": {"phase": ["learning", "falling"]}}]},
        "severity": "notice",
    },
]


def brain_of(rules: list[dict] = RULES) -> Brain:
    brain = Brain(load_rules(json.dumps({"rules": rules, "policy": POLICY})))
    brain.add_catalog(CATALOG)
    brain.begin_attempt(1, 0, MarkerKind.RESUME)
    return brain


def fired(brain: Brain, steps: range) -> list[int]:
    seen = []
    for step in steps:
        loss = LOSS[step - 1]
        brain.observe(CATALOG.id, step, np.array([loss, 1.0], np.float32))
        out = brain.decide(step, PolicyContext(Mode.OBSERVE))
        seen += [c.step for c in out.alerts if c.state == "firing"]
    return seen


def test_conditions_use_the_phase():
    brain = brain_of()
    [step] = fired(brain, range(1, 1000))
    assert 300 < step < 800
    assert brain.phase == "honeymoon"
    brain.marker(Marker(kind=MarkerKind.PHASE_CHANGE, step=1000))
    assert brain.phase == "learning"


def test_brain_saves_the_phase():
    whole, first, second = brain_of(), brain_of(), brain_of()
    expected = fired(whole, range(1, 1000))
    seen = fired(first, range(1, 400))
    second.load_state(first.state_dict())
    assert seen + fired(second, range(400, 1000)) == expected
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("phase", ["honeymon", 3, math.inf])
def test_unknown_phase_is_a_mistake(phase):
    rule = {"name": "late", "when": {"phase": phase}, "severity": "notice"}
    with pytest.raises(RuleFileError) as caught:
        brain_of([RULES[0], rule])
    assert [error.field for error in caught.value.exceptions] == ["rules.1.when.phase"]
