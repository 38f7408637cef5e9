"""Rules on wall-clock time: decided by ticks alone, apart from incidents and conditions."""

from __future__ import annotations

import json

import pytest

from stabilizer.errors import RuleFileError
from stabilizer.protocol.batches import MarkerKind
from stabilizer.protocol.runs import Tick
from stabilizer.rules.loader import RuleFile, load_rules

STALLED = {"name": "stalled", "clock": {"stalled_for": "10m"}, "severity": "notice"}
LOST = {"name": "lost", "clock": {"lost_for": "2h"}, "severity": "notice"}
BEHIND = {"name": "behind", "clock": {"collector_behind": "90s"}, "severity": "notice"}
HIGH = {
    "name": "high",
    "select": {"metric": "loss"},
    "detect": {"threshold": {"above": 3}},
    "severity": "notice",
}
ACT = {"act_on": {"any": ["severity:notice"]}}


def tick(run, step: int, **seconds: float) -> list[str]:
    shown = Tick(step, **seconds)
    expected = run.brain.would_change(shown)
    out = run.take(run.brain.tick(shown))
    assert bool(out) == expected
    return [f"{c.key.rule} {c.state} {c.value:g}" for c in out.alerts]


@pytest.fixture
def run(rules, drive):
    run = drive(rules([HIGH, STALLED, LOST, BEHIND], **ACT), "loss")
    run.run(20, 1.0)
    return run


def test_each_limit_looks_at_its_own_time(run):
    assert tick(run, 20, silent=599, stalled=599, behind=89) == []
    assert tick(run, 20, silent=600, stalled=600) == ["stalled firing 600"]
    assert tick(run, 20, silent=7200, stalled=7200) == ["lost firing 7200"]
    assert tick(run, 21, silent=0, stalled=0, behind=7200) == [
        "stalled resolved 0",
        "lost resolved 0",
        "behind firing 7200",
    ]
    assert tick(run, 22, behind=1) == ["behind resolved 1"]


def test_no_incident_and_no_command_follow(run):
    tick(run, 20, stalled=1e6)
    run.run(50, 1.0)
    assert [out.incidents for out in run.outcomes if out.incidents] == []
    assert run.commands == []


def test_alert_outlives_a_new_attempt_until_the_next_tick(run):
    tick(run, 20, silent=1e6)
    run.rewind(10, MarkerKind.RESUME)
    assert tick(run, 10, silent=0.0) == ["lost resolved 0"]


def test_health_says_that_nothing_has_come(run):
    notes = {health.name: health.note for health in run.brain.rule_health}
    assert notes["stalled"] == "no tick yet"
    tick(run, 20, stalled=1.0)
    notes = {health.name: health.note for health in run.brain.rule_health}
    assert (notes["stalled"], notes["lost"]) == ("", "no tick yet")


def test_end_of_the_run_ends_the_alert(run):
    tick(run, 20, silent=1e6)
    assert [c.key.rule for c in run.brain.end_run(20).alerts] == ["lost"]


def test_saved_and_loaded_it_continues_the_same(run, drive, rules):
    tick(run, 20, silent=1e6, stalled=1e6)
    other = drive(rules([HIGH, STALLED, LOST, BEHIND], **ACT), "loss")
    other.brain.load_state(run.brain.state_dict())
    assert tick(other, 21, silent=0, stalled=0) == tick(run, 21, silent=0, stalled=0)
    assert other.brain.state_dict() == run.brain.state_dict()


def file_of(*rules: dict) -> RuleFile:
    policy = {"ladder": ["pause"], "act_on": {}}
    return load_rules(json.dumps({"rules": [*rules], "policy": policy}))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("2d", 172_800)]
)
def test_durations(text, seconds):
    rule = file_of({**STALLED, "clock": {"stalled_for": text}}).rules[0]
    assert rule.clock.limit == seconds


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ({**STALLED, "clock": {}}, "rules.0.clock"),
        ({**STALLED, "clock": {"stalled_for": "1m", "lost_for": "1m"}}, "rules.0.clock"),
        ({**STALLED, "clock": {"stalled_for": "ten"}}, "rules.0.clock.stalled_for"),
        ({**STALLED, "clock": {"stalled_for": "0s"}}, "rules.0.clock.stalled_for"),
        ({**STALLED, "clock": {"stalled_for": 600}}, "rules.0.clock.stalled_for"),
        ({**STALLED, "clock": {"late_for": "1m"}}, "rules.0.clock.late_for"),
        ({**STALLED, "severity": "divergence"}, "rules.0"),
        ({**STALLED, "signal": True}, "rules.0"),
        ({**STALLED, "quorum": 2}, "rules.0"),
        ({**STALLED, "when": {"rule": "x"}}, "rules.0"),
        ({**STALLED, **{k: HIGH[k] for k in ("select", "detect")}}, "rules.0"),
    ],
)
def test_mistakes_name_their_field(rule, field):
    with pytest.raises(RuleFileError) as caught:
        file_of(rule)
    assert field in {error.field for error in caught.value.exceptions}


def test_conditions_cannot_refer_to_the_clock():
    both = {"name": "both", "when": {"rule": "stalled"}, "severity": "notice"}
    with pytest.raises(RuleFileError) as caught:
        file_of(STALLED, both)
    [error] = caught.value.exceptions
    assert error.field == "rules.1.when.rule"
    assert "clock" in error.reason
