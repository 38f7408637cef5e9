from __future__ import annotations

from pathlib import Path

import pytest

from stabilizer.errors import RuleFileError
from stabilizer.protocol.decisions import Mode
from stabilizer.rules.detector_specs import DriftSpec
from stabilizer.rules.loader import default_rules, load_rules

DESIGN = """\
rules:
  - name: outer_projection_explosion
    doc: Activations of O and FC2 explode in the bottom layers before the loss moves.
    source: arXiv:2110.09456; IDEFICS talk
    select: {metric: activation_rms, kind: [o_proj, fc2], layer: {bottom: 0.34}}
    detect: {robust_zscore: {window: 128, above: 8, scale: log}}
    quorum: 2
    for: 5
    severity: precursor
  - name: loss_rising
    select: {metric: loss}
    detect: {drift: {window: 200, above: 0.01}}
    for: 20
    severity: notice
  - name: loss_diverging
    select: {metric: loss}
    detect: {drift: {window: 200, above: 0.03}}
    for: 30
    severity: divergence
policy:
  mode: propose
  ladder:
    - {reduce_lr: {factor: 0.75, steps: 500}}
    - {rollback: {margin: 100, skip: 200}}
    - {rollback: {margin: 200, skip: 300}, reduce_lr: {factor: 0.5}}
    - pause
  act_on: {any: [severity:divergence], or_all: [severity:precursor, rule:loss_rising]}
  guards: {budget: {rollback: 3, per_steps: 2000}, cooldown: 100, watch: 250}
"""

GOOD_POLICY = "policy: {ladder: [pause], act_on: {any: [severity:divergence]}}\n"


def rule(**fields: str) -> str:
    """A rule file whose only rule is good, but for the fields given."""
    given = {
        "name": "a",
        "select": "{metric: loss}",
        "detect": "{nonfinite: {}}",
        "severity": "notice",
        **fields,
    }
    lines = [f"    {name}: {value}" for name, value in given.items() if value]
    return "rules:\n  -\n" + "\n".join(lines) + "\n" + GOOD_POLICY


def mistakes(text: str) -> list[tuple[int, str, str]]:
    with pytest.raises(RuleFileError) as caught:
        load_rules(text, "f.yaml")
    errors = caught.value.exceptions
    assert all(error.file == "f.yaml" for error in errors)
    return [(error.line, error.field, error.reason) for error in errors]


class TestGoodFiles:
    def test_example_of_the_design_page(self):
        rules = load_rules(DESIGN)
        outer, rising, diverging = rules.rules
        assert (outer.quorum, outer.for_, outer.select.layer.bottom) == (2, 5, 0.34)
        assert isinstance(rising.detect.detector, DriftSpec)
        assert diverging.detect.detector.above == 0.03
        assert rules.policy.mode is Mode.PROPOSE
        assert rules.policy.ladder[3].pause
        assert rules.text == DESIGN

    def test_shipped_rules_name_what_they_are_and_where_they_are_from(self):
        rules = default_rules()
        assert all(rule.doc and rule.source for rule in rules.rules)
        assert rules.policy.mode is Mode.PROPOSE
        assert default_rules() is rules

    def test_a_file_of_version_0_1_keeps_its_hash(self):
        file = Path(__file__).parents[3] / "compat/v0_1/rules.yaml"
        assert load_rules(file.read_text()).hash == "19350d28ea68096c98eba96586ec36f5"

    def test_hash_is_of_the_content_not_of_the_layout(self):
        rules = load_rules(DESIGN)
        assert (
            load_rules("# a comment\n" + DESIGN.replace("{metric: loss}", "{metric:   loss}")).hash
            == rules.hash
        )
        assert load_rules(DESIGN.replace("0.03", "0.04")).hash != rules.hash
        assert len(rules.hash) == 32

    def test_short_forms(self):
        rules = load_rules(
            rule(select="{metric: [loss, z_loss], layer: [0, 3], source: null, module: '*'}")
        )
        select = rules.rules[0].select
        assert select.metric == ("loss", "z_loss")
        assert select.layer.index == (0, 3)
        assert select.labels == {"source": (None,), "module": ("*",)}
        assert load_rules(rule(select="{metric: loss, layer: 2}")).rules[0].select.layer.index == (
            2,
        )

    def test_cut_ramps_back_over_as_many_steps_as_it_held(self):
        cut = load_rules(DESIGN).policy.ladder[0].reduce_lr
        assert (cut.steps, cut.ramp_steps) == (500, 500)
        held = load_rules(DESIGN).policy.ladder[2].reduce_lr
        assert (held.steps, held.ramp_steps) == (None, 0)


BAD = {
    "unknown field": (rule(colour="red"), 7, "rules.0.colour", "not a field"),
    "missing field": (rule(select=""), 3, "rules.0.select", "missing"),
    "no detector": (rule(detect="{}"), 5, "rules.0.detect", "exactly one"),
    "two detectors": (
        rule(detect="{nonfinite: {}, threshold: {above: 1}}"),
        5,
        "rules.0.detect",
        "given: nonfinite, threshold",
    ),
    "both bounds": (
        rule(detect="{threshold: {above: 1, below: 0}}"),
        5,
        "rules.0.detect.threshold",
        "exactly one of above, below",
    ),
    "nan threshold": (
        rule(detect="{threshold: {above: .nan}}"),
        5,
        "rules.0.detect.threshold.above",
        "finite",
    ),
    "infinite threshold": (
        rule(detect="{robust_zscore: {above: .inf}}"),
        5,
        "rules.0.detect.robust_zscore.above",
        "finite",
    ),
    "text for a number": (
        rule(detect="{drift: {above: '3'}}"),
        5,
        "rules.0.detect.drift.above",
        "number",
    ),
    "truth for a number": (rule(**{"for": "true"}), 7, "rules.0.for", "integer"),
    "for of zero": (rule(**{"for": "0"}), 7, "rules.0.for", "greater"),
    "broken quorum": (rule(quorum="1.5"), 7, "rules.0.quorum", "whole number"),
    "no quorum": (rule(quorum="0"), 7, "rules.0.quorum", "greater"),
    "unknown severity": (rule(severity="grave"), 6, "rules.0.severity", "notice"),
    "unknown kind": (
        rule(select="{metric: loss, kind: [o_proj, foo]}"),
        4,
        "rules.0.select.kind",
        "'foo'",
    ),
    "unknown tower": (
        rule(select="{metric: loss, tower: moon}"),
        4,
        "rules.0.select.tower",
        "'moon'",
    ),
    "metric not a noun": (rule(select="{metric: A b}"), 4, "rules.0.select.metric", "pattern"),
    "label not a text": (
        rule(select="{metric: loss, rank: 3}"),
        4,
        "rules.0.select.rank",
        "string",
    ),
    "share of layers": (
        rule(select="{metric: loss, layer: {bottom: 1.5}}"),
        4,
        "rules.0.select.layer.bottom",
        "less",
    ),
    "two shares of layers": (
        rule(select="{metric: loss, layer: {bottom: 0.5, top: 0.5}}"),
        4,
        "rules.0.select.layer",
        "give",
    ),
    "unknown marker": (rule(inhibit_after="{moon: 3}"), 7, "rules.0.inhibit_after.moon", "resume"),
    "warm-up beyond the window": (
        rule(detect="{robust_zscore: {above: 3, window: 8, min_samples: 9}}"),
        5,
        "rules.0.detect.robust_zscore",
        "1 to 8",
    ),
    "drift both ways": (
        rule(detect="{drift: {above: 0.1, direction: both}}"),
        5,
        "rules.0.detect.drift.direction",
        "up, down",
    ),
    "name of a rule": (rule(name="A-b"), 3, "rules.0.name", "pattern"),
}


@pytest.mark.parametrize(("text", "line", "field", "reason"), BAD.values(), ids=BAD)
def test_mistake_is_told_with_line_and_field(text, line, field, reason):
    found = mistakes(text)
    assert len(found) == 1
    assert found[0][:2] == (line, field)
    assert reason in found[0][2]


POLICIES = {
    "empty ladder": ("{ladder: [], act_on: {}}", "policy.ladder", "0 rungs"),
    "idle rung": ("{ladder: [{}], act_on: {}}", "policy.ladder.0", "reduce_lr, rollback"),
    "pause and cut": (
        "{ladder: [{pause: true, reduce_lr: {factor: 0.5}}], act_on: {}}",
        "policy.ladder.0",
        "or pause",
    ),
    "factor above one": (
        "{ladder: [{reduce_lr: {factor: 2}}], act_on: {}}",
        "policy.ladder.0.reduce_lr.factor",
        "less",
    ),
    "unknown rule": ("{ladder: [pause], act_on: {any: ['rule:b']}}", "policy.act_on.any.0", "'b'"),
    "unknown severity": (
        "{ladder: [pause], act_on: {or_all: ['rule:a', 'severity:bad']}}",
        "policy.act_on.or_all.1",
        "'bad'",
    ),
    "alternative that does not exist": (
        "{ladder: [pause], act_on: {any: ['rule:a|rule:b']}}",
        "policy.act_on.any.0",
        "'b'",
    ),
    "neither rule nor severity": (
        "{ladder: [pause], act_on: {any: [blub]}}",
        "policy.act_on.any",
        "neither",
    ),
    "unknown mode": ("{mode: wild, ladder: [pause], act_on: {}}", "policy.mode", "observe"),
    "negative budget": (
        "{ladder: [pause], act_on: {}, guards: {budget: {rollback: -1}}}",
        "policy.guards.budget.rollback",
        "greater",
    ),
}


@pytest.mark.parametrize(("policy", "field", "reason"), POLICIES.values(), ids=POLICIES)
def test_mistake_in_the_policy(policy, field, reason):
    text = rule().replace(GOOD_POLICY, f"policy: {policy}\n")
    (found,) = mistakes(text)
    assert (found[0], found[1]) == (7, field)
    assert reason in found[2]


class TestWholeFile:
    def test_all_mistakes_at_once_in_the_order_of_the_file(self):
        text = """\
rules:
  - name: a
    select: {metric: loss, kind: foo}
    detect: {drift: {above: .nan}}
    severity: bad
    severity: notice
  - name: a
    select: {metric: loss}
    detect: {nonfinite: {}}
    severity: notice
    for: x
policy: {ladder: [], act_on: {any: ['rule:zz']}}
"""
        found = mistakes(text)
        assert [line for line, _, _ in found] == [3, 4, 5, 6, 7, 11, 12, 12]
        assert "rules.0.severity" in {field for _, field, _ in found}
        assert "first on line 5" in found[3][2]

    @pytest.mark.parametrize(
        ("text", "line", "reason"),
        [
            ("", 1, "empty"),
            ("# only a comment\n", 1, "empty"),
            ("a: [1\nb: 2", 2, "not YAML"),
            ("a: 1\n\x00", 2, "not YAML"),
            ("a: *x", 1, "undefined alias"),
            ("a: &x [*x]", 1, "refers to a node that contains it"),
            ("a: 1\n---\nb: 2", 2, "another document"),
            ("? [a]\n: 1", 1, "must be a string"),
            ("a: !!python/object:os.system x", 1, "not YAML"),
            ("a: 2020-99-99", 1, "cannot be read"),
        ],
    )
    def test_text_that_is_no_rule_file(self, text, line, reason):
        found = mistakes(text)
        assert found[0][0] == line
        assert reason in found[0][2]

    def test_no_mapping(self):
        assert "dictionary" in mistakes("- 1")[0][2]

    def test_keys_that_are_not_texts(self):
        assert {field for _, field, _ in mistakes("1: 2")} >= {"rules", "policy"}

    def test_billion_laughs_is_refused(self):
        text = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
        for depth in range(1, 9):
            text += f"a{depth}: &a{depth} [" + ",".join([f"*a{depth - 1}"] * 10) + "]\n"
        assert "nodes" in mistakes(text)[0][2]

    def test_merge_keys_and_anchors_are_understood(self):
        text = rule().replace("{metric: loss}", "&s {metric: loss}")
        text = text.replace(
            "policy:",
            "  - {name: b, select: *s, detect: {nonfinite: {}}, severity: notice}\npolicy:",
        )
        assert load_rules(text).rules[1].select.metric == ("loss",)

    def test_too_many_rules(self):
        one = "  - {name: n%d, select: {metric: loss}, detect: {nonfinite: {}}, severity: notice}\n"
        text = "rules:\n" + "".join(one % i for i in range(501)) + GOOD_POLICY
        assert "501 rules" in mistakes(text)[0][2]
