"""A new version of the rules takes over what the same rules know, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from stabilizer.protocol.commands import CommandState
from stabilizer.protocol.decisions import AlertState
from stabilizer.rules.brain import Brain

DRIFT = {
    "name": "drift",
    "select": {"metric": "loss"},
    "detect": {"drift": {"window": 40, "above": 0.03}},
    "severity": "notice",
}
HIGH = {
    "name": "high",
    "select": {"metric": "loss"},
    "detect": {"threshold": {"above": 3}},
    "severity": "divergence",
}
BOTH = {"name": "both", "when": {"rule": "high", "within": 30}, "severity": "notice"}
ACT = {"act_on": {"any": ["rule:high"]}}


def reload(run, file):
    """Change over to another file at the step that is reached."""
    brain = Brain(file)
    run.take(brain.inherit(run.brain, run.at))
    run.brain = brain


def test_the_same_rules_continue_to_the_bit(rules, drive):
    loss = 2 + 0.02 * np.random.default_rng(0).standard_normal(120)
    loss[80:] += 0.02 * np.arange(40)
    file = rules([DRIFT, HIGH, BOTH], **ACT)
    straight, changed = drive(file, "loss"), drive(file, "loss")
    for value in loss[:60]:
        straight.step(value)
        changed.step(value)
    reload(changed, rules([HIGH, DRIFT, BOTH], **ACT))
    reload(changed, file)
    for value in loss[60:]:
        straight.step(value)
        changed.step(value)
    drifts = [
        [(c.step, c.state) for out in run.outcomes for c in out.alerts if c.key.rule == "drift"]
        for run in (straight, changed)
    ]
    assert drifts[0] == drifts[1]
    assert drifts[0]
    assert straight.brain.state_dict() == changed.brain.state_dict()


@pytest.mark.parametrize("rest", [[DRIFT], [DRIFT, {**HIGH, "severity": "notice"}]])
def test_alerts_of_rules_that_change_or_go_end(rules, drive, rest):
    run = drive(rules([DRIFT, HIGH], **ACT), "loss")
    run.run(30, 1.0)
    run.step(9.0)
    reload(run, rules(rest, act_on={}))
    [change] = run.outcomes[-1].alerts
    assert (change.key.rule, change.state, change.step) == ("high", AlertState.RESOLVED, 31)


def test_an_incident_and_its_command_go_on(rules, drive):
    run = drive(rules([HIGH], **ACT), "loss")
    run.run(30, 1.0)
    run.run(2, 9.0)
    [intent] = run.commands
    reload(run, rules([HIGH, DRIFT], **ACT))
    run.command(CommandState.APPLIED, intent)
    run.run(40, 1.0)
    assert len(run.commands) == 1
    resolved = [i for out in run.outcomes for i in out.incidents if i.resolved_step]
    assert [(i.number, i.helped) for i in resolved] == [(1, True)]


def test_a_shorter_ladder_ends_in_a_pause(rules, drive):
    run = drive(rules([HIGH], **ACT), "loss")
    run.snapshots(5, 15)
    run.run(30, 1.0)
    run.run(2, 9.0)
    run.apply()
    reload(run, rules([HIGH], **ACT, ladder=[{"reduce_lr": {"factor": 0.5}}]))
    run.run(60, 9.0)
    assert run.commands[-1].parameters.kind == "pause"


def test_healthy_after_of_the_new_file_counts(rules, drive):
    run = drive(rules([HIGH], **ACT, healthy_after=500), "loss")
    run.snapshots(5)
    run.run(100, 1.0)
    assert run.brain.healthy_snapshots == ()
    reload(run, rules([HIGH], **ACT, healthy_after=20))
    run.step(1.0)
    assert run.brain.healthy_snapshots == ("s1-5",)
