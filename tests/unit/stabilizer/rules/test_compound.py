from __future__ import annotations

import json

import numpy as np
import pytest

from stabilizer.errors import RuleFileError
from stabilizer.protocol.batches import MarkerKind
from stabilizer.protocol.commands import CommandState
from stabilizer.protocol.decisions import AlertState, Mode
from stabilizer.protocol.series import Catalog
from stabilizer.rules.brain import Brain, PolicyContext
from stabilizer.rules.loader import load_rules

FRAME = Catalog.of(["a", "b"])
POLICY = {"ladder": ["pause"], "act_on": {"any": ["rule:c"]}, "mode": "auto"}


def part(name: str, **fields: object) -> dict:
    rule = {
        "name": name,
        "select": {"metric": name},
        "detect": {"threshold": {"above": 0}},
        "severity": "notice",
        "signal": True,
    }
    return {**rule, **fields}


def brain_of(when: dict, **fields: object) -> Brain:
    rule = {"name": "c", "when": when, "severity": "divergence", **fields}
    text = json.dumps({"rules": [part("a"), part("b"), rule], "policy": POLICY})
    brain = Brain(load_rules(text))
    brain.add_catalog(FRAME)
    brain.begin_attempt(1, 0, MarkerKind.RESUME)
    return brain


def play(brain: Brain, a: str, b: str, start: int = 1) -> list[tuple[int, str]]:
    """Feed two series, `x` is high; return the transitions of the rule c."""
    seen = []
    for step, marks in enumerate(zip(a, b, strict=True), start=start):
        frame = np.array([mark == "x" for mark in marks], np.float32)
        outcomes = [brain.observe(FRAME.id, step, frame)]
        outcomes.append(brain.decide(step, PolicyContext(Mode.OBSERVE)))
        changes = [change for out in outcomes for change in out.alerts]
        assert {change.key.rule for change in changes} <= {"c"}, "signals raise no alert"
        seen += [(change.step, str(change.state)) for change in changes]
    return seen


A, B = {"rule": "a"}, {"rule": "b"}
THEN = {"then": {"first": "a", "second": "b", "within": 2}}
EITHER = {"all": [{"any": [A, B]}, {"not": {"all": [A, B]}}]}


@pytest.mark.parametrize(
    ("when", "a", "b", "expected"),
    [
        (A, ".x.", "...", "2+ 3-"),
        ({"all": [A, B]}, "x.x", ".xx", "3+"),
        ({"any": [A, B]}, "..x", "x..", "1+ 2- 3+"),
        ({"all": [A, {"not": B}]}, "xx.", "x..", "2+ 3-"),
        ({**A, "within": 2}, "x....", ".....", "1+ 4-"),
        ({**A, "within": 4, "times": 2}, "xx.x.", ".....", "4+"),
        ({**A, "within": 4, "times": 2}, "x.....x", ".......", ""),
        (THEN, "x...x", "..x..", "3+ 4-"),
        (THEN, "...x", "x..x", "4+"),
        (THEN, "x....", "...x.", ""),
        ({"ready": "b"}, ".", ".", "1+"),
        (EITHER, "x.x", ".xx", "1+ 3-"),
    ],
)
def test_conditions(when, a, b, expected):
    signs = {"firing": "+", "resolved": "-"}
    seen = [f"{step}{signs[state]}" for step, state in play(brain_of(when), a, b)]
    assert seen == expected.split()


def test_condition_holds_for_steps():
    brain = brain_of({"rule": "a"}, **{"for": {"steps": 3}})
    assert play(brain, "xxxxx", ".....") == [(1, "pending"), (4, "firing")]


def test_new_attempt_ends_the_alert_and_forgets():
    brain = brain_of({"rule": "a", "within": 10})
    play(brain, "x", ".")
    ended = brain.begin_attempt(2, 1, MarkerKind.ROLLBACK)
    assert [change.state for change in ended.alerts] == [AlertState.RESOLVED]
    assert play(brain, "...", "...", start=2) == []


def test_saved_and_loaded_it_continues_the_same():
    when = {"any": [{"rule": "a", "within": 30, "times": 3}, {"rule": "b", "within": 2}]}
    rng = np.random.default_rng(3)
    a, b = ("".join(rng.choice(list("x."), 60, p=[0.2, 0.8])) for _ in range(2))
    whole = brain_of(when)
    expected = play(whole, a, b)
    first = brain_of(when)
    seen = play(first, a[:25], b[:25])
    second = brain_of(when)
    second.load_state(first.state_dict())
    seen += play(second, a[25:], b[25:], start=26)
    assert seen == expected
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("when", "field"),
    [
        ({"rule": "d"}, "rules.2.when.rule"),
        ({"all": [{"rule": "a"}, {"not": {"ready": "c"}}]}, "rules.2.when.all.1.not.ready"),
        ({"then": {"first": "a", "second": "x"}}, "rules.2.when.then.second"),
        ({}, "rules.2.when"),
        ({"rule": "a", "ready": "b"}, "rules.2.when"),
        ({"rule": "a", "times": 2}, "rules.2.when"),
    ],
)
def test_mistakes_name_their_field(when, field):
    with pytest.raises(RuleFileError) as caught:
        brain_of(when)
    assert any(error.field == field for error in caught.value.exceptions)


def test_rule_needs_series_or_a_condition():
    for fields in ({"when": {"rule": "a"}}, {"select": None}, {"detect": None, "select": None}):
        text = json.dumps(
            {"rules": [part("a"), part("b", **fields)], "policy": POLICY | {"act_on": {}}}
        )
        with pytest.raises(RuleFileError):
            load_rules(text)


HIGH = {
    "name": "high",
    "select": {"metric": "loss"},
    "detect": {"threshold": {"above": 3}},
    "severity": "divergence",
}
ACT = {"act_on": {"any": ["severity:divergence"]}}


class TestRemedy:
    @pytest.fixture
    def run(self, rules, drive):
        rule = {**HIGH, "remedy": {"rollback": {"margin": 5}}}
        run = drive(rules([rule], **ACT), "loss")
        run.snapshots(2, 10)
        run.run(20, 1.0)
        run.step(9.0)
        return run

    def test_takes_the_place_of_the_first_rung(self, run):
        assert run.commands[-1].parameters.target.step == 10
        assert run.commands[-1].parameters.skip_steps == 0

    def test_the_ladder_follows(self, run):
        run.apply()
        run.run(2, 1.0)
        run.run(15, 9.0)
        assert run.commands[-1].rung == 1
        # The rung says 7; it came again at the same data, of which all are left out.
        assert run.commands[-1].parameters.skip_steps == run.commands[-1].issued_step - 2


def test_incident_begins_at_the_first_sign_of_its_parts(rules, drive):
    lost = {
        "name": "lost",
        "when": {"rule": "high"},
        "for": {"steps": 8},
        "severity": "divergence",
        "remedy": {"rollback": {"margin": 0}},
    }
    parts = [{**HIGH, "severity": "notice", "signal": True}, lost]
    run = drive(rules(parts, **ACT), "loss")
    run.snapshots(4, 12)
    run.run(18, 1.0)
    run.run(9, 9.0)
    assert run.commands[-1].parameters.target.step == 12
    assert run.outcomes[-1].incidents[0].first_step == 19


@pytest.mark.parametrize(("after", "helped"), [(1.0, True), (2.9, False)])
def test_helped_means_back_at_the_level_before(rules, drive, after, helped):
    run = drive(rules([{**HIGH, "for": 3}], **ACT), "loss")
    run.run(30, 1.0)
    run.run(5, 3.5)
    run.command(CommandState.APPLIED)
    run.run(60, after)
    resolved = [i for out in run.outcomes for i in out.incidents if i.resolved_step]
    assert [incident.helped for incident in resolved] == [helped]
