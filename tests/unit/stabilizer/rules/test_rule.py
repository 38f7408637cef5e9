from __future__ import annotations

import json

import numpy as np
import pytest

from stabilizer.protocol.batches import Marker, MarkerKind
from stabilizer.protocol.series import Catalog
from stabilizer.rules.rule import Frame, Rule
from stabilizer.rules.spec import RuleSpec

FRAME = Catalog.of([f'activation_rms{{layer="{i}"}}' for i in range(4)])


def make(**fields: object) -> Rule:
    given = {
        "name": "r",
        "select": {"metric": "activation_rms"},
        "detect": {"threshold": {"above": 10}},
        "severity": "precursor",
        **fields,
    }
    spec = RuleSpec.model_validate_json(json.dumps(given))
    return Rule(spec, spec.select, spec.detect)


def see(rule: Rule, step: int, *values: float, present: list[bool] | None = None):
    mask = None if present is None else np.array(present)
    changes = rule.observe(Frame(1, step, FRAME, np.array(values, np.float32), mask))
    return [(c.key.series, str(c.state)) for c in changes]


class TestQuorum:
    def test_fewer_than_needed_do_not_fire(self):
        rule = make(quorum=2)
        assert see(rule, 1, 20, 1, 1, 1) == []
        assert see(rule, 2, 20, 1, 1, 20) == [("activation_rms", "firing")]
        assert see(rule, 3, 20, 1, 1, 1) == [("activation_rms", "resolved")]

    @pytest.mark.parametrize(("share", "needed"), [(0.25, 1), (0.3, 2), (0.75, 3), (0.99, 4)])
    def test_share_of_the_selected(self, share, needed):
        rule = make(quorum=share)
        for count in range(5):
            see(rule, count + 1, *([20] * count), *([1] * (4 - count)))
            assert bool(rule.alerts.active) == (count >= needed)

    def test_message_counts_and_names_the_worst(self):
        rule = make(quorum=2, message="Look at the data.")
        (change,) = rule.observe(Frame(1, 1, FRAME, np.array([20, 30, 1, 1], np.float32)))
        assert change.message == (
            '2 of 4 series, 2 needed; most at activation_rms{layer="1"}. Look at the data.'
        )
        assert change.value == 30.0

    def test_series_measured_in_turn_still_count_together(self):
        rule = make(quorum=2)
        see(rule, 1, 20, 0, 0, 0, present=[True, False, False, False])
        changes = see(rule, 2, 0, 20, 0, 0, present=[False, True, False, False])
        assert changes == [("activation_rms", "firing")]


class TestInhibition:
    @pytest.mark.parametrize("kind", [MarkerKind.RESUME, MarkerKind.LR_CHANGE])
    def test_event_silences_for_its_steps(self, kind):
        rule = make(inhibit_after={"resume": 3, "lr_change": 3})
        rule.marker(Marker(kind=kind, step=10))
        assert [bool(see(rule, step, 20, 1, 1, 1)) for step in range(11, 15)] == [
            False,
            False,
            False,
            True,
        ]

    def test_other_events_do_not(self):
        rule = make(inhibit_after={"resume": 3})
        rule.marker(Marker(kind=MarkerKind.ROLLBACK, step=10))
        assert see(rule, 11, 20, 1, 1, 1)

    def test_warm_up_is_left_out(self):
        rule = make(after_step=100)
        assert see(rule, 100, 20, 1, 1, 1) == []
        assert see(rule, 101, 20, 1, 1, 1)

    def test_inhibited_samples_are_not_learned(self):
        detect = {"robust_zscore": {"window": 8, "above": 8, "min_samples": 4}}
        rule = make(detect=detect, inhibit_after={"resume": 50})
        rng = np.random.default_rng(0)
        for step in range(1, 20):
            see(rule, step, *(1 + 0.01 * rng.standard_normal(4)))
        rule.marker(Marker(kind=MarkerKind.RESUME, step=19))
        for step in range(20, 70):
            assert see(rule, step, 50, 50, 50, 50) == []
        assert len(see(rule, 70, 50, 50, 50, 50)) == 4

    def test_inhibition_of_an_abandoned_branch_is_over(self):
        rule = make(inhibit_after={"lr_change": 100})
        rule.marker(Marker(kind=MarkerKind.LR_CHANGE, step=500))
        rule.begin_attempt(400, MarkerKind.ROLLBACK)
        assert see(rule, 401, 20, 1, 1, 1)

    def test_phase_change_begins_a_new_baseline(self):
        detect = {"robust_zscore": {"window": 8, "above": 8, "min_samples": 4}}
        rule = make(detect=detect, inhibit_after={})
        for step in range(1, 20):
            see(rule, step, 1.0, 1.01, 0.99, 1.0)
        rule.marker(Marker(kind=MarkerKind.PHASE_CHANGE, step=19))
        assert all(see(rule, step, 50, 50, 50, 50) == [] for step in range(20, 60))


class TestHealth:
    def test_rule_that_raises_marks_itself(self, monkeypatch):
        rule = make()

        def broken(*args: object) -> None:
            raise ZeroDivisionError("inner fault")

        monkeypatch.setattr(rule._detector, "update", broken)
        assert see(rule, 3, 20, 1, 1, 1) == []
        assert not rule.health.ok
        assert rule.health.last_error == "step 3: ZeroDivisionError: inner fault"

    def test_it_recovers_and_keeps_what_it_said(self, monkeypatch):
        rule = make()
        with monkeypatch.context() as patch:
            patch.setattr(rule._detector, "update", None)
            see(rule, 3, 20, 1, 1, 1)
        see(rule, 4, 20, 1, 1, 1)
        assert rule.health.ok
        assert rule.health.last_error is not None
        assert rule.health.evaluations == 2

    def test_frame_without_its_series_is_no_evaluation(self):
        rule = make()
        rule.observe(Frame(1, 1, Catalog.of(["loss"]), np.zeros(1, np.float32)))
        see(rule, 2, 0, 0, 0, 0, present=[False] * 4)
        assert rule.health.evaluations == 0
