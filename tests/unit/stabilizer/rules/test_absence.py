"""Series that are measured no more, whatever the sampling, and what only looks like it."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import pytest

from stabilizer.protocol.batches import MarkerKind
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.series import Catalog
from stabilizer.rules.brain import Brain, PolicyContext
from stabilizer.rules.loader import load_rules

RUN = Catalog.of(["loss"])
MODULES = Catalog.of(['rms{layer="0"}', 'rms{layer="1"}'])


def brain_of(detect: dict | None = None, **fields: object) -> Brain:
    rule = {
        "name": "gone",
        "select": {"metric": "rms"},
        "detect": {"absent": detect if detect is not None else {}},
        "severity": "notice",
        **fields,
    }
    policy = {"ladder": ["pause"], "act_on": {}}
    brain = Brain(load_rules(json.dumps({"rules": [rule], "policy": policy})))
    brain.add_catalog(RUN)
    brain.add_catalog(MODULES)
    brain.begin_attempt(1, 0, MarkerKind.RESUME)
    return brain


def show(
    brain: Brain, steps: Iterable[int], every: int = 1, layers: str = "xx", value: float = 1.0
) -> list[tuple[int, str, str]]:
    """Measure the loss at all steps, and every so many steps the layers marked `x`."""
    seen = []
    present = np.array([mark == "x" for mark in layers])
    for step in steps:
        changes = brain.observe(RUN.id, step, np.ones(1, np.float32)).alerts
        if present.any() and step % every == 0:
            rows = np.full(2, value, np.float32)
            changes += brain.observe(MODULES.id, step, rows, present).alerts
        changes += brain.decide(step, PolicyContext(Mode.OBSERVE)).alerts
        seen += [(c.step, c.key.series[-3:-2] or "*", str(c.state)) for c in changes]
    return seen


@pytest.mark.parametrize("every", [1, 5, 10])
def test_missing_series_is_alerted_on_and_its_return_resolves(every):
    brain = brain_of()
    assert show(brain, range(1, 201), every) == []
    assert show(brain, range(201, 401), every, "x_") == [(300, "1", "firing")]
    assert show(brain, range(401, 411), every) == [(400 + every, "1", "resolved")]


def test_missing_catalog():
    brain = brain_of()
    show(brain, range(1, 101), 10)
    assert show(brain, range(101, 250), layers="__") == [
        (200, "0", "firing"),
        (200, "1", "firing"),
    ]


def test_series_that_is_rare_is_missed_later():
    brain = brain_of({"steps": 100, "samples": 4})
    show(brain, range(1, 1001), 120)
    assert show(brain, range(1001, 1600), layers="__")[0][0] == 960 + 3 * 120 + 1


def test_series_that_came_twice_is_not_missed():
    brain = brain_of()
    show(brain, range(1, 10))
    assert show(brain, range(10, 500), layers="__") == []


def test_value_that_is_not_finite_is_there():
    brain = brain_of()
    assert show(brain, range(1, 400), value=np.nan) == []


def test_jump_of_the_run_misses_nothing():
    brain = brain_of()
    show(brain, range(1, 101), 10)
    assert show(brain, range(10_101, 10_301), 10) == []


def test_run_that_stands_still_misses_nothing():
    brain = brain_of()
    show(brain, range(1, 101))
    assert show(brain, [101], layers="__") == []


def test_quorum():
    brain = brain_of(quorum=2)
    show(brain, range(1, 101))
    assert show(brain, range(101, 301), layers="x_") == []
    assert show(brain, range(301, 501), layers="__")[0][0] == 400


def test_rollback_begins_the_count_anew():
    brain = brain_of()
    show(brain, range(1, 301))
    show(brain, range(301, 390), layers="__")
    brain.begin_attempt(2, 200, MarkerKind.ROLLBACK)
    assert show(brain, range(201, 300), layers="__") == []
    assert show(brain, range(300, 302), layers="__")[0] == (300, "0", "firing")


def test_phase_change_may_measure_something_else():
    brain = brain_of()
    show(brain, range(1, 101))
    brain.begin_attempt(2, 100, MarkerKind.PHASE_CHANGE)
    assert show(brain, range(101, 400), layers="__") == []


def test_saved_and_loaded_it_continues_the_same():
    parts = [(range(1, 200), "xx"), (range(200, 260), "x_"), (range(260, 330), "__")]
    whole, first = brain_of(), brain_of()
    expected = [line for steps, marks in parts for line in show(whole, steps, 3, marks)]
    seen = []
    for steps, marks in parts:
        for half in (steps[: len(steps) // 2], steps[len(steps) // 2 :]):
            seen += show(first, half, 3, marks)
            second = brain_of()
            second.load_state(first.state_dict())
            first = second
    assert seen == expected
    assert expected
    assert first.state_dict() == whole.state_dict()
