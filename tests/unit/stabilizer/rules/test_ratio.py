"""Ratios of series: of two, of layers, across catalogs, and what has no divisor."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stabilizer.errors import RuleFileError
from stabilizer.protocol.batches import MarkerKind
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.series import Catalog
from stabilizer.rules.brain import Brain, PolicyContext
from stabilizer.rules.loader import RuleFile, load_rules
from stabilizer.rules.warnings import warnings_of

LOSSES = Catalog.of(["loss"])
HEADS = Catalog.of(["z_loss", "other"])
LAYERS = Catalog.of(
    f'grad_norm{{layer="{layer}",module="m{layer}",tower="{tower}"}}'
    for tower in ("language", "vision")
    for layer in range(4)
)
OVER = {"over": {"metric": "z_loss"}}


def file_of(ratio: dict, **fields: object) -> RuleFile:
    rule = {
        "name": "ratio",
        "select": {"metric": "loss"},
        "ratio": ratio,
        "detect": {"threshold": {"above": 2}},
        "severity": "notice",
        **fields,
    }
    policy = {"ladder": ["pause"], "act_on": {}}
    return load_rules(json.dumps({"rules": [rule], "policy": policy}))


def brain_of(ratio: dict, **fields: object) -> Brain:
    brain = Brain(file_of(ratio, **fields))
    for catalog in (LOSSES, HEADS, LAYERS):
        brain.add_catalog(catalog)
    brain.begin_attempt(1, 0, MarkerKind.RESUME)
    return brain


def show(brain: Brain, step: int, *frames: tuple[Catalog, list]) -> list[tuple[str, float]]:
    """Return the series and ratio of what fires at a step."""
    fired = []
    for catalog, row in frames:
        values = np.array([0 if value is None else value for value in row], np.float32)
        present = np.array([value is not None for value in row])
        out = brain.observe(catalog.id, step, values, present)
        fired += [(c.key.series, c.value) for c in out.alerts if c.state == "firing"]
    brain.decide(step, PolicyContext(Mode.OBSERVE))
    return fired


def test_two_series_of_two_catalogs():
    brain = brain_of(OVER)
    assert show(brain, 1, (HEADS, [2.0, 1.0]), (LOSSES, [3.0])) == []
    assert show(brain, 2, (HEADS, [1.0, 1.0]), (LOSSES, [3.0])) == [("loss", 3.0)]


@pytest.mark.parametrize(("step", "fires"), [(11, True), (21, True), (22, False)])
def test_a_divisor_counts_while_it_is_fresh(step, fires):
    brain = brain_of(OVER)
    show(brain, 1, (HEADS, [1.0, 1.0]))
    assert bool(show(brain, step, (LOSSES, [3.0]))) == fires


@pytest.mark.parametrize("divisor", [None, 0.0, np.nan, np.inf])
def test_without_a_divisor_nothing_is_judged(divisor):
    brain = brain_of(OVER)
    assert show(brain, 1, (HEADS, [divisor, 1.0]), (LOSSES, [3.0])) == []
    assert brain.rule_health[0].evaluations == 0
    assert brain.rule_health[0].ok


def test_a_value_that_is_not_finite_is_not_compared():
    brain = brain_of(OVER)
    assert show(brain, 1, (HEADS, [1.0, 1.0]), (LOSSES, [np.nan])) == []


BOTTOM = {"metric": "grad_norm", "layer": {"bottom": 0.25}}
TOP = {"metric": "grad_norm", "layer": {"top": 0.75}}
NORMS = [9.0, 1.0, 2.0, 3.0, 9.0, 4.0, 5.0, 6.0]


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        ({"over": TOP}, {"language": 9 / 3.5, "vision": 9 / 3.5}),
        ({"over": TOP, "same": "tower"}, {"language": 4.5}),
        ({"over": TOP, "same": "tower", "take": "mean"}, {"language": 4.5}),
        ({"over": TOP, "same": "tower", "take": "min"}, {"language": 9.0, "vision": 2.25}),
        ({"over": TOP, "same": "tower", "take": "max"}, {"language": 3.0}),
        ({"over": TOP, "same": ["tower", "layer"]}, {}),
    ],
)
def test_bottom_layers_over_the_others(ratio, expected):
    fired = dict(show(brain_of(ratio, select=BOTTOM), 1, (LAYERS, NORMS)))
    assert {s.split('tower="')[1][:-2]: v for s, v in fired.items()} == pytest.approx(expected)


def test_layers_that_are_not_measured_are_left_out_of_the_median():
    brain = brain_of({"over": TOP, "same": "tower"}, select=BOTTOM)
    fired = show(brain, 1, (LAYERS, [9.0, None, np.nan, 3.0, None, 4.0, 5.0, 6.0]))
    assert [value for _, value in fired] == [3.0]


@pytest.mark.parametrize("every", [1, 5, 10])
def test_sampling_changes_nothing(every):
    brain = brain_of(OVER, **{"for": {"steps": 20}})
    at = []
    for step in range(1, 101):
        frames = [(LOSSES, [1.0 + (step > 40) * 5])]
        frames += [(HEADS, [1.0, 1.0])] if step % every == 0 else []
        at += [step for _ in show(brain, step, *frames)]
    assert at == [61]


def test_rollback_forgets_later_divisors():
    brain = brain_of({**OVER, "fresh": 1000})
    show(brain, 1, (HEADS, [2.0, 1.0]))
    show(brain, 50, (HEADS, [0.1, 1.0]))
    brain.begin_attempt(2, 40, MarkerKind.ROLLBACK)
    assert show(brain, 100, (LOSSES, [3.0])) == []


def test_saved_and_loaded_it_continues_the_same():
    rng = np.random.default_rng(2)
    detect = {"robust_zscore": {"window": 16, "above": 2, "min_samples": 4}}
    fields = {"select": BOTTOM, "detect": detect, "quorum": 1, "by": "tower"}
    ratio = {"over": TOP, "same": "tower"}
    rows = [np.exp(rng.standard_normal(8)).tolist() for _ in range(80)]
    whole, first, second = (brain_of(ratio, **fields) for _ in range(3))
    expected = [show(whole, step, (LAYERS, row)) for step, row in enumerate(rows, 1)]
    seen = [show(first, step, (LAYERS, row)) for step, row in enumerate(rows[:37], 1)]
    second.load_state(first.state_dict())
    seen += [show(second, step, (LAYERS, row)) for step, row in enumerate(rows[37:], 38)]
    assert seen == expected
    assert any(expected)
    assert second.state_dict() == whole.state_dict()


def test_health_says_that_nothing_is_divided_by():
    brain = brain_of({"over": {"metric": "norm"}})
    show(brain, 1, (LOSSES, [1.0]))
    assert brain.rule_health[0].note == "over selects nothing"


@pytest.mark.parametrize(
    ("ratio", "field"),
    [
        ({}, "rules.0.ratio.over"),
        ({"over": {"metric": "A"}}, "rules.0.ratio.over.metric"),
        ({"over": {"metric": "loss", "tower": "speech"}}, "rules.0.ratio.over.tower"),
        ({**OVER, "take": "sum"}, "rules.0.ratio.take"),
        ({**OVER, "same": "Tower"}, "rules.0.ratio.same"),
        ({**OVER, "fresh": -1}, "rules.0.ratio.fresh"),
    ],
)
def test_mistakes_name_their_field(ratio, field):
    with pytest.raises(RuleFileError) as caught:
        file_of(ratio)
    assert [error.field for error in caught.value.exceptions] == [field]


def test_warnings_look_at_the_divisor_as_well():
    [line] = warnings_of(file_of({"over": {"metric": "zloss"}}))
    assert line.startswith("rule ratio: ratio.over: the agent does not measure 'zloss'")
