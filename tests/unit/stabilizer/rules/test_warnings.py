from __future__ import annotations

import json

import pytest

from stabilizer.rules.loader import default_rules, load_rules
from stabilizer.rules.warnings import warnings_of

RULE = {
    "name": "a",
    "select": {"metric": "loss"},
    "detect": {"nonfinite": {}},
    "severity": "notice",
}
POLICY = {"ladder": [{"rollback": {}}], "act_on": {"any": ["severity:notice"]}}


def warned(rule: dict | None = None, **policy: object) -> list[str]:
    content = {"rules": [{**RULE, **(rule or {})}], "policy": {**POLICY, **policy}}
    return warnings_of(load_rules(json.dumps(content)))


def test_shipped_rules_have_none():
    assert warnings_of(default_rules()) == []


def test_a_rule_that_works_has_none():
    assert warned() == []


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"select": {"metric": "los"}}, "'los'"),
        ({"select": {"metric": "loss", "sources": "web"}}, "'sources'"),
        ({"select": {"metric": "attention_entropy", "head": "median"}}, "'median'"),
        (
            {"select": {"metric": "activation_rms", "kind": "fc2", "layer": [0, 1]}, "quorum": 3},
            "quorum of 3",
        ),
        ({"signal": True}, "no condition refers"),
    ],
)
def test_rules_without_effect(rule, said):
    assert any(said in line and line.startswith("rule a: ") for line in warned(rule))


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"quorum": 1, "by": "tower", "select": {"metric": "loss", "tower": None}}, "by tower"),
        ({"quorum": 1, "by": "towers"}, "'towers'"),
        (
            {
                "quorum": 1,
                "by": "source",
                "groups": "all",
                "select": {"metric": "loss", "source": "web"},
            },
            "selects 1 at most",
        ),
    ],
)
def test_groups_that_never_come_together(rule, said):
    assert any(said in line for line in warned(rule))


def test_a_rule_on_the_clock_is_never_acted_on():
    clock = {"select": None, "detect": None, "clock": {"lost_for": "1h"}}
    assert any("opens no incident" in line for line in warned(clock, act_on={"any": ["rule:a"]}))


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"act_on": {"any": ["severity:divergence"]}}, "severity divergence"),
        ({"guards": {"budget": {"rollback": 0}}}, "rollback is 0"),
        (
            {"act_on": {"after_wait": ["rule:a"]}, "wait": 5000},
            "longer than the budget",
        ),
    ],
)
def test_policies_without_effect(policy, said):
    assert any(said in line and line.startswith("policy.") for line in warned(**policy))


def test_labels_of_a_users_own_metric_are_the_users():
    (line,) = warned({"select": {"metric": "reward", "environment": "maze"}})
    assert "the job must log it" in line
