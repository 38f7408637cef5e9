from __future__ import annotations

import math
from typing import ClassVar

import pytest

from stabilizer.protocol.commands import (
    CommandKind,
    CommandState,
    PauseParameters,
    ReduceLrParameters,
)
from stabilizer.protocol.decisions import Mode
from tests.unit.stabilizer.rules.conftest import RULES

CALM = (1.0, 1.0)
NAN = math.nan


class TestWait:
    def test_notice_alone_waits_with_a_deadline(self, drive):
        run = drive()
        run.run(10, *CALM)
        run.step(2.5, 1.0)
        decision = run.outcomes[-1].incidents[-1].decision
        assert run.log == [(11, "wait/may_recover")]
        assert decision.deadline_step == 26

    def test_jump_that_recovers_is_resolved_without_command(self, drive):
        run = drive()
        run.run(10, *CALM)
        run.run(8, 2.5, 1.0)
        run.run(10, *CALM)
        assert run.log == [(11, "wait/may_recover"), (23, "resolve/recovered_by_itself")]
        assert run.commands == []

    def test_jump_that_stays_is_acted_on_at_the_deadline(self, drive):
        run = drive()
        run.run(10, *CALM)
        run.run(20, 2.5, 1.0)
        assert run.log == [(11, "wait/may_recover"), (26, "act/deadline_passed")]

    def test_precursor_alone_waits_for_the_second_signal(self, drive):
        run = drive()
        run.run(30, 1.0, 20.0)
        assert run.log == [(1, "wait/second_signal_missing")]

    def test_precursor_and_loss_together_act(self, drive):
        run = drive()
        run.run(5, 1.0, 20.0)
        run.run(2, 2.5, 20.0)
        assert run.log[-1] == (6, "act/precursor_confirmed")

    def test_signal_just_over_still_counts(self, drive):
        run = drive()
        run.run(5, 1.0, 20.0)
        run.run(3, *CALM)
        run.step(2.5, 1.0)
        assert run.log[-1] == (9, "act/precursor_confirmed")

    def test_signal_long_over_does_not_count(self, drive):
        run = drive(None)
        run.run(2, 1.0, 20.0)
        run.run(9, *CALM)
        run.step(2.5, 1.0)
        assert run.decisions[-1] == "wait/may_recover"

    def test_same_decision_is_recorded_once(self, drive):
        run = drive()
        run.run(14, 2.5, 1.0)
        assert len(run.log) == 1

    def test_loss_that_is_not_finite_is_never_recovered(self, drive, rules):
        blind = rules([{**rule, "severity": "notice"} for rule in _without("nan")])
        run = drive(blind)
        run.run(5, 1.0, 20.0)
        run.run(30, NAN, 1.0)
        assert "resolve/recovered_by_itself" not in run.decisions


def _without(name: str) -> list[dict]:
    return [
        {
            "name": "inner",
            "select": {"metric": "activation_rms"},
            "detect": {"threshold": {"above": 10}},
            "severity": "notice",
        },
        {
            "name": "warm",
            "select": {"metric": "loss"},
            "detect": {"threshold": {"above": 2}},
            "severity": "notice",
        },
    ]


class TestAct:
    def test_divergence_takes_the_first_rung(self, drive):
        run = drive()
        run.run(10, *CALM)
        run.run(3, 4.0, 1.0)
        intent = run.commands[-1]
        assert run.log[-1] == (13, "act/divergence")
        assert intent.key == "incident-1/rung-0/try-0"
        assert intent.parameters == ReduceLrParameters(factor=0.5, hold_steps=50, ramp_steps=50)
        assert (intent.issued_step, intent.attempt, intent.proposed) == (13, 1, False)

    def test_loss_not_finite_goes_straight_to_a_rollback(self, drive):
        run = drive()
        run.snapshots(0, 4)
        run.run(20, *CALM)
        run.step(NAN, 1.0)
        intent = run.commands[-1]
        assert run.log == [(21, "act/divergence")]
        assert intent.parameters.kind is CommandKind.ROLLBACK
        assert intent.parameters.target.step == 4
        assert intent.parameters.skip_steps == 7

    def test_loss_not_finite_without_snapshot_pauses(self, drive):
        run = drive()
        run.run(20, *CALM)
        run.step(NAN, 1.0)
        assert run.decisions == [
            "hold/no_healthy_snapshot",
            "hold/no_healthy_snapshot",
            "escalate/ladder_exhausted",
        ]
        assert run.commands[-1].parameters == PauseParameters()

    def test_one_command_at_a_time(self, drive):
        run = drive()
        run.run(30, 4.0, 1.0)
        assert len(run.commands) == 1

    def test_condition_on_a_rule_is_the_closer_description(self, drive, rules):
        high = {**RULES[1], "remedy": {"reduce_lr": {"factor": 0.5}}}
        closer = {
            "name": "both",
            "when": {"all": [{"rule": "high"}, {"rule": "warm"}]},
            "severity": "divergence",
            "remedy": {"reduce_lr": {"factor": 0.1}},
        }
        run = drive(rules([high, *RULES[2:], closer]))
        run.run(10, *CALM)
        run.run(3, 4.0, 1.0)
        assert run.commands[-1].parameters.factor == 0.1

    def test_first_step_is_that_of_the_first_sign(self, drive):
        run = drive()
        run.run(10, *CALM)
        run.run(5, 1.0, 20.0)
        run.run(3, 4.0, 20.0)
        change = [c for out in run.outcomes for c in out.incidents][-1]
        assert (change.first_step, change.opened_step) == (11, 11)
        assert change.rules == ("inner", "warm", "high")
        assert change.severity == "divergence"


class TestGuards:
    def test_observe_says_what_it_would_have_done(self, drive):
        run = drive(mode=Mode.OBSERVE)
        run.run(30, 4.0, 1.0)
        decision = run.outcomes[5].incidents
        assert run.decisions == ["wait/may_recover", "hold/mode_observe"]
        assert run.commands == []
        assert decision is not None

    def test_observe_message_names_the_action(self, drive):
        run = drive(mode=Mode.OBSERVE)
        run.run(3, 4.0, 1.0)
        message = run.outcomes[-1].incidents[-1].decision.message
        assert "multiply the learning rate by 0.5" in message

    def test_propose_makes_a_proposal(self, drive):
        run = drive(mode=Mode.PROPOSE)
        run.run(5, 4.0, 1.0)
        assert run.decisions[-1] == "propose/divergence"
        assert run.commands[-1].proposed

    def test_disarmed_holds_and_acts_when_armed_again(self, drive):
        run = drive(disarmed=True)
        run.run(5, 4.0, 1.0)
        assert run.decisions[-1] == "hold/disarmed"
        run.disarmed = False
        run.step(4.0, 1.0)
        assert run.log[-1] == (6, "act/divergence")

    def test_silenced_rules_do_not_act(self, drive):
        run = drive(silenced=frozenset({"high"}))
        run.run(14, 4.0, 1.0)
        assert run.decisions == ["wait/may_recover", "hold/silenced"]

    def test_everything_silenced(self, drive):
        run = drive(silenced=frozenset({"*"}))
        run.run(40, NAN, 1.0)
        assert run.decisions == ["hold/silenced"]

    def test_cooldown_holds_a_relapse_back(self, drive):
        run = _after_cut(drive)
        run.run(3, *CALM)
        run.run(6, 4.0, 1.0)
        assert run.decisions[-1] == "hold/cooldown"
        run.run(8, 4.0, 1.0)
        assert run.decisions[-1] == "act/relapse"

    def test_budget_spent_holds(self, drive, rules):
        file = rules(guards={"budget": {"rollback": 0, "reduce_lr": 0}, "cooldown": 0})
        run = drive(file)
        run.run(5, 4.0, 1.0)
        assert run.decisions[-1] == "hold/budget_spent"
        assert run.commands == []

    def test_budget_comes_back_with_the_steps(self, drive, rules):
        budget = {"reduce_lr": 1, "per_steps": 40}
        run = drive(rules(guards={"budget": budget, "cooldown": 0, "watch": 5}, ladder=[CUT, CUT]))
        run.run(3, 4.0, 1.0)
        run.apply()
        run.run(5, 4.0, 1.0)
        assert run.decisions[-1] == "hold/budget_spent"
        run.run(40, 4.0, 1.0)
        assert run.decisions[-1] == "act/relapse"

    def test_budget_spent_may_pause_and_call(self, drive, rules):
        budget = {"reduce_lr": 1, "per_steps": 400, "then_pause": True}
        run = drive(rules(guards={"budget": budget, "cooldown": 0, "watch": 5}, ladder=[CUT, CUT]))
        run.run(3, 4.0, 1.0)
        run.apply()
        run.run(5, 4.0, 1.0)
        assert run.decisions[-1] == "escalate/ladder_exhausted"
        assert run.commands[-1].parameters == PauseParameters()
        assert "1 of 1 reduce_lr" in run.commands[-1].message


CUT = {"reduce_lr": {"factor": 0.5}}


def _after_cut(drive):
    run = drive()
    run.run(10, *CALM)
    run.run(3, 4.0, 1.0)
    run.apply()
    return run


def _after_rollback(drive, rules):
    ladder = [{"rollback": {"margin": 5, "skip": 7}}, {"rollback": {"margin": 10}}, "pause"]
    run = drive(rules(ladder=ladder))
    run.snapshots(0, 10, 20)
    run.run(40, *CALM)
    run.run(3, 4.0, 1.0)
    run.apply()
    return run


def _after_rollback_without_skip(drive, rules, *, skip: int = 0, watch: int = 40):
    ladder = [{"rollback": {"margin": 5, "skip": skip}}, {"rollback": {"margin": 10}}, "pause"]
    run = drive(rules(ladder=ladder, guards={"cooldown": 10, "watch": watch}))
    run.snapshots(0, 10, 20)
    run.run(40, *CALM)
    run.run(3, 4.0, 1.0)
    run.apply()
    return run


class TestPace:
    """Watch and cooldown fit the run: at most a quarter of it, at least five samples."""

    GUARDS: ClassVar = {"cooldown": 100, "watch": 250}
    PACE: ClassVar = {"share": 0.25, "least": 10, "samples": 5}

    def _cut(self, drive, rules, calm: int, every: int = 1, **policy):
        run = drive(rules(guards=self.GUARDS, **policy))
        for _ in range(calm // every):
            run.at += every - 1
            run.step(*CALM)
        for _ in range(3):
            run.at += every - 1
            run.step(4.0, 1.0)
        run.apply()
        return run

    @pytest.mark.parametrize(
        ("calm", "every", "watch"),
        [(20, 1, 10), (200, 1, 50), (4000, 1, 250), (4000, 100, 500)],
        ids=["at the start", "in a short run", "in a long run", "with rare samples"],
    )
    def test_watch(self, drive, rules, calm, every, watch):
        run = self._cut(drive, rules, calm, every, pace=self.PACE)
        decision = run.outcomes[-1].incidents[-1].decision
        assert decision.deadline_step == run.at + watch

    def test_cooldown_of_a_short_run(self, drive, rules):
        run = self._cut(drive, rules, 80, pace=self.PACE)
        run.run(25, 4.0, 1.0)
        assert run.log[-1] == (83 + 20, "act/relapse")

    def test_without_pace_a_number_is_what_it_says(self, drive, rules):
        run = self._cut(drive, rules, 80)
        assert run.outcomes[-1].incidents[-1].decision.deadline_step == run.at + 250


class TestWatch:
    def test_better_than_before_is_helped(self, drive):
        run = _after_cut(drive)
        run.run(40, *CALM)
        change = [c for out in run.outcomes for c in out.incidents][-1]
        assert run.decisions[-2:] == ["wait/watching", "resolve/intervention_helped"]
        assert change.helped is True
        assert change.resolved_step == 33

    def test_rollback_is_watched_past_where_it_was_issued(self, drive, rules):
        run = _after_rollback(drive, rules)
        assert run.at == 20
        run.run(27, *CALM)
        assert run.decisions[-1] == "wait/watching"
        run.step(*CALM)
        assert run.decisions[-1] == "resolve/intervention_helped"
        assert run.log[-1][0] == 43 + 20 // 4

    def test_relapse_goes_deeper(self, drive, rules):
        run = _after_rollback(drive, rules)
        run.run(10, *CALM)
        run.run(4, 4.0, 1.0)
        assert run.decisions[-1] == "act/relapse"
        assert run.commands[-1].parameters.target.step == 20
        assert run.commands[-1].rung == 1

    def test_relapse_before_the_first_sign_moves_the_target(self, drive, rules):
        run = _after_rollback(drive, rules)
        run.run(3, *CALM)
        run.run(9, 4.0, 1.0)
        assert run.commands[-1].parameters.target.step == 10

    def test_same_data_again_are_skipped(self, drive, rules):
        run = _after_rollback_without_skip(drive, rules)
        run.run(20, *CALM)
        run.run(3, 4.0, 1.0)
        assert run.decisions[-1] == "act/relapse"
        assert run.commands[-1].parameters.target.step == 20
        assert run.commands[-1].parameters.skip_steps == 43 - 20
        assert "at the same data" in run.commands[-1].message

    def test_relapse_elsewhere_skips_no_more_than_the_rung_says(self, drive, rules):
        run = _after_rollback_without_skip(drive, rules, watch=60)
        run.run(45, *CALM)
        run.run(3, 4.0, 1.0)
        assert run.decisions[-1] == "act/relapse"
        assert run.commands[-1].parameters.skip_steps == 0

    def test_other_data_at_the_same_step_are_not_the_same(self, drive, rules):
        run = _after_rollback_without_skip(drive, rules, skip=30)
        run.run(20, *CALM)
        run.run(3, 4.0, 1.0)
        assert run.decisions[-1] == "act/relapse"
        assert "at the same data" not in run.commands[-1].message

    def test_ladder_used_up_pauses_and_calls(self, drive, rules):
        run = _after_rollback(drive, rules)
        run.run(13, 4.0, 1.0)
        run.apply()
        run.run(13, 4.0, 1.0)
        assert run.decisions[-1] == "escalate/ladder_exhausted"
        run.apply()
        run.run(30, 4.0, 1.0)
        assert run.decisions[-1] == "escalate/ladder_exhausted"
        assert len(run.commands) == 3

    def test_cut_without_effect_is_a_relapse_after_the_cooldown(self, drive):
        run = _after_cut(drive)
        run.run(9, 4.0, 1.0)
        assert run.decisions[-1] == "wait/watching"
        run.step(4.0, 1.0)
        assert run.log[-1] == (23, "act/relapse")

    def test_cut_that_takes_effect_slowly_is_given_time(self, drive):
        run = _after_cut(drive)
        for step in range(60):
            run.step(4.0 * 0.985**step, 1.0)
        run.run(40, *CALM)
        assert "act/relapse" not in run.decisions
        assert run.decisions[-1] == "resolve/intervention_helped"

    def test_loss_not_finite_after_a_cut_is_a_relapse_at_once(self, drive):
        run = _after_cut(drive)
        run.step(NAN, 1.0)
        assert run.log[-1] == (14, "escalate/ladder_exhausted")

    def test_quiet_but_worse_is_not_helped(self, drive):
        run = drive()
        run.run(10, *CALM)
        run.run(2, 1.0, 20.0)
        run.run(2, 2.5, 20.0)
        run.apply()
        run.run(60, 1.9, 1.0)
        change = [c for out in run.outcomes for c in out.incidents][-1]
        assert run.decisions[-1] == "resolve/recovered_by_itself"
        assert change.helped is False

    def test_nan_at_the_end_of_the_watch_never_counts_as_better(self, drive, rules):
        blind = rules(_blind_rules())
        run = drive(blind)
        run.run(3, 1.0, 20.0)
        run.apply()
        run.run(50, NAN, 1.0)
        assert "resolve/intervention_helped" not in run.decisions
        assert run.decisions[-1] == "act/relapse" or "escalate" in run.decisions[-1]

    def test_frames_of_the_old_attempt_are_not_held_against_the_rollback(self, drive, rules):
        ladder = [{"rollback": {"margin": 5}}, "pause"]
        run = drive(rules(ladder=ladder))
        run.snapshots(0, 10, 20)
        run.run(40, *CALM)
        run.run(3, 4.0, 1.0)
        run.command(CommandState.APPLIED)
        run.run(20, 4.0, 1.0)
        assert run.decisions[-1] == "wait/watching"
        run.rewind(20)
        run.run(40, *CALM)
        assert run.decisions[-1] == "resolve/intervention_helped"

    def test_attempt_may_begin_before_the_result_comes(self, drive, rules):
        run = drive(rules(ladder=[{"rollback": {"margin": 5}}, "pause"]))
        run.snapshots(0, 10, 20)
        run.run(40, *CALM)
        run.run(3, 4.0, 1.0)
        run.rewind(20)
        run.run(2, *CALM)
        run.command(CommandState.APPLIED)
        run.run(40, *CALM)
        assert run.decisions[-2:] == ["wait/watching", "resolve/intervention_helped"]


def _blind_rules() -> list[dict]:
    return [
        {
            "name": "inner",
            "select": {"metric": "activation_rms"},
            "detect": {"threshold": {"above": 10}},
            "severity": "divergence",
        },
        {
            "name": "warm",
            "select": {"metric": "loss"},
            "detect": {"threshold": {"above": 2}},
            "severity": "notice",
        },
    ]
