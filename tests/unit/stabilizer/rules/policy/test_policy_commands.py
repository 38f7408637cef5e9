"""What becomes of commands: tried again, refused, taken back, overtaken by people."""

from __future__ import annotations

import pytest

from stabilizer.protocol.batches import MarkerKind
from stabilizer.protocol.commands import (
    CommandState,
    PauseParameters,
    ReduceLrParameters,
    RejectReason,
    RollbackParameters,
    SnapshotTarget,
)
from stabilizer.protocol.decisions import IncidentState, Mode

CALM = (1.0, 1.0)


def _after_cut(drive):
    run = drive()
    run.run(10, *CALM)
    run.run(3, 4.0, 1.0)
    run.apply()
    return run


class TestCommands:
    @pytest.mark.parametrize(
        ("state", "reject"),
        [
            (CommandState.REJECTED, RejectReason.UNKNOWN_SNAPSHOT),
            (CommandState.FAILED, RejectReason.READ_BACK_MISMATCH),
            (CommandState.EXPIRED, None),
        ],
        ids=str,
    )
    def test_failed_command_is_tried_again_then_the_next_rung(self, drive, state, reject):
        run = drive()
        run.run(3, 4.0, 1.0)
        run.command(state, reject=reject)
        run.step(4.0, 1.0)
        assert run.decisions[-2:] == ["hold/command_failed", "act/command_failed"]
        assert run.commands[-1].key == "incident-1/rung-0/try-1"
        run.command(state, reject=reject)
        run.step(4.0, 1.0)
        assert run.commands[-1].rung == 2

    def test_proposal_that_nobody_answers_does_not_climb_the_ladder(self, drive):
        run = drive(mode=Mode.PROPOSE)
        run.run(3, 4.0, 1.0)
        for _ in range(5):
            run.command(CommandState.EXPIRED)
            run.step(4.0, 1.0)
        assert {command.rung for command in run.commands} == {0}
        assert len({command.key for command in run.commands}) == 6
        assert all(command.proposed for command in run.commands)

    def test_unanswered_proposal_is_renewed_when_its_snapshot_is_gone(self, drive, rules):
        run = drive(rules(ladder=[{"rollback": {"margin": 5}}, "pause"]), mode=Mode.PROPOSE)
        run.snapshots(0, 10, 20)
        run.run(40, *CALM)
        run.run(3, 4.0, 1.0)
        assert run.commands[-1].parameters.target.step == 20
        assert "loses 23 steps" in run.commands[-1].message
        run.known = [info for info in run.known if info.step != 20]
        run.snapshots()
        run.run(2, 4.0, 1.0)
        assert run.cancelled == ["incident-1/rung-0/try-0"]
        assert run.commands[-1].parameters.target.step == 10
        assert "loses 34 steps" in run.commands[-1].message
        assert len(run.commands) == 2

    def test_unanswered_cut_becomes_a_rollback_when_the_loss_is_lost(self, drive):
        run = drive(mode=Mode.PROPOSE)
        run.snapshots(0, 4)
        run.run(20, *CALM)
        run.run(3, 4.0, 1.0)
        assert isinstance(run.commands[-1].parameters, ReduceLrParameters)
        run.step(float("nan"), 1.0)
        assert isinstance(run.commands[-1].parameters, RollbackParameters)
        assert len(run.cancelled) == 1

    def test_unanswered_proposal_that_is_still_right_is_left(self, drive):
        run = drive(mode=Mode.PROPOSE)
        run.run(3, 4.0, 1.0)
        run.run(50, 4.0, 1.0)
        assert len(run.commands) == 1

    def test_unanswered_proposal_is_not_renewed_when_the_run_has_recovered(self, drive):
        run = drive(mode=Mode.PROPOSE)
        run.run(3, 4.0, 1.0)
        run.command(CommandState.EXPIRED)
        run.run(8, *CALM)
        assert len(run.commands) == 1
        assert run.decisions[-1] == "resolve/recovered_by_itself"

    def test_failures_are_bounded(self, drive):
        run = drive()
        for _ in range(60):
            run.step(4.0, 1.0)
            if len(run.commands) > len(run.cancelled):
                run.command(CommandState.FAILED)
        assert len(run.commands) <= 8

    def test_refusal_by_a_person_is_respected_for_the_cooldown(self, drive):
        run = drive(mode=Mode.PROPOSE)
        run.run(3, 4.0, 1.0)
        run.command(CommandState.REJECTED, reject=RejectReason.REFUSED_BY_PERSON)
        run.run(9, 4.0, 1.0)
        assert run.decisions[-1] == "hold/cooldown"
        run.run(2, 4.0, 1.0)
        assert run.decisions[-1] == "propose/command_failed"

    def test_proposal_is_taken_back_when_the_incident_is_over(self, drive):
        run = drive(mode=Mode.PROPOSE)
        run.run(3, 4.0, 1.0)
        run.run(6, *CALM)
        assert run.cancelled == ["incident-1/rung-0/try-0"]
        assert run.decisions[-1] == "resolve/recovered_by_itself"

    def test_approved_proposal_is_not_taken_back(self, drive):
        run = drive(mode=Mode.PROPOSE)
        run.run(3, 4.0, 1.0)
        run.command(CommandState.PENDING)
        run.run(20, *CALM)
        assert run.cancelled == []

    def test_proposal_becomes_a_command_when_the_mode_becomes_auto(self, drive):
        run = drive(mode=Mode.PROPOSE)
        run.run(3, 4.0, 1.0)
        run.mode = Mode.AUTO
        run.step(4.0, 1.0)
        assert run.cancelled == ["incident-1/rung-0/try-0"]
        assert run.commands[-1].key == "incident-1/rung-0/try-1"
        assert not run.commands[-1].proposed

    def test_applied_twice_changes_nothing(self, drive):
        run = _after_cut(drive)
        before = run.brain.state_dict()
        assert not run.command(CommandState.APPLIED)
        assert run.brain.state_dict() == before

    def test_cut_that_was_applied_after_all_is_watched_and_not_made_twice(self, drive):
        run = drive()
        run.run(3, 4.0, 1.0)
        run.command(CommandState.EXPIRED)
        run.step(4.0, 1.0)
        first, second = run.commands
        run.command(CommandState.APPLIED, first)
        assert run.cancelled == [second.key]
        assert run.decisions[-1] == "wait/watching"
        run.command(CommandState.CANCELLED, second)
        assert not run.command(CommandState.APPLIED, first)
        run.run(3, 4.0, 1.0)
        assert run.commands == [first, second]

    def test_late_word_on_an_old_command_changes_nothing(self, drive):
        run = drive()
        run.run(3, 4.0, 1.0)
        run.command(CommandState.FAILED)
        run.step(4.0, 1.0)
        before = run.brain.state_dict()
        run.command(CommandState.DELIVERED, run.commands[0])
        assert run.brain.state_dict() == before


class TestPeople:
    MANUAL = ReduceLrParameters(factor=0.9)

    def test_manual_command_supersedes_a_proposal(self, drive, command_of):
        run = drive(mode=Mode.PROPOSE)
        run.run(3, 4.0, 1.0)
        command = command_of("m", self.MANUAL, CommandState.PENDING, actor="person:ann")
        run.take(run.brain.command_changed(command))
        run.run(3, 4.0, 1.0)
        assert run.cancelled == ["incident-1/rung-0/try-0"]
        assert run.decisions[-1] == "wait/command_in_flight"
        assert len(run.commands) == 1

    def test_manual_command_is_watched_and_may_help(self, drive, command_of):
        run = drive(mode=Mode.PROPOSE)
        run.run(3, 4.0, 1.0)
        for state in (CommandState.PENDING, CommandState.APPLIED, CommandState.APPLIED):
            command = command_of("m", self.MANUAL, state, actor="person:ann", at=3)
            run.take(run.brain.command_changed(command))
        run.run(30, *CALM)
        assert run.decisions[-2:] == ["act/manual", "resolve/intervention_helped"]

    def test_manual_command_starts_the_cooldown(self, drive, command_of):
        run = drive()
        run.run(5, *CALM)
        command = command_of("m", self.MANUAL, CommandState.APPLIED, actor="person:ann", at=5)
        run.take(run.brain.command_changed(command))
        run.run(4, 4.0, 1.0)
        assert run.decisions[-1] == "hold/cooldown"

    def test_pause_by_hand_leaves_the_policy_alone(self, drive, command_of):
        run = drive()
        command = command_of("p", PauseParameters(), CommandState.PENDING, actor="person:ann")
        assert not run.brain.command_changed(command)
        run.run(3, 4.0, 1.0)
        assert run.decisions[-1] == "act/divergence"

    def test_refused_manual_command_frees_the_policy(self, drive, command_of):
        run = drive()
        for state in (CommandState.PENDING, CommandState.REJECTED):
            command = command_of("m", self.MANUAL, state, actor="person:ann")
            run.take(run.brain.command_changed(command))
        run.run(3, 4.0, 1.0)
        assert run.decisions[-1] == "act/divergence"


class TestEnds:
    def test_run_ends_within_an_incident(self, drive):
        run = drive()
        run.run(3, 4.0, 1.0)
        out = run.take(run.brain.end_run(4))
        assert out.incidents[-1].decision.reason == "run_ended"
        assert out.incidents[-1].state is IncidentState.RESOLVED
        assert out.cancellations == ["incident-1/rung-0/try-0"]
        assert {change.state for change in out.alerts} == {"resolved"}

    def test_run_ends_in_peace(self, drive):
        run = drive()
        run.run(3, *CALM)
        assert not run.brain.end_run(3)

    def test_left_over_alert_opens_no_second_incident(self, drive):
        run = drive()
        run.run(10, *CALM)
        run.run(3, 4.0, 1.0)
        run.apply()
        run.run(30, 2.5, 1.0)
        numbers = {c.number for out in run.outcomes for c in out.incidents}
        assert numbers == {1}

    def test_resume_within_an_incident_clears_its_alerts(self, drive):
        run = drive()
        run.run(2, 2.5, 1.0)
        run.rewind(2, MarkerKind.RESUME)
        run.run(60, *CALM)
        assert run.decisions == ["wait/may_recover", "resolve/recovered_by_itself"]


class TestEscalated:
    def test_person_is_called_once_and_may_heal_it(self, drive, rules, command_of):
        run = drive(rules(ladder=["pause"]))
        run.run(3, 4.0, 1.0)
        run.apply()
        run.run(2, 4.0, 1.0)
        cut = ReduceLrParameters(factor=0.1)
        for state in (CommandState.PENDING, CommandState.APPLIED):
            command = command_of("m", cut, state, actor="person:ann", at=5)
            run.take(run.brain.command_changed(command))
        run.run(40, *CALM)
        assert run.decisions[-3:] == [
            "escalate/ladder_exhausted",
            "act/manual",
            "resolve/intervention_helped",
        ]

    def test_no_new_command_after_a_relapse(self, drive, rules, command_of):
        run = drive(rules(ladder=["pause"]))
        run.run(3, 4.0, 1.0)
        run.apply()
        cut = ReduceLrParameters(factor=0.1)
        command = command_of("m", cut, CommandState.APPLIED, actor="person:ann", at=3)
        run.take(run.brain.command_changed(command))
        run.run(5, *CALM)
        run.run(60, 4.0, 1.0)
        assert len(run.commands) == 1

    def test_recovers_after_the_pause(self, drive, rules):
        run = drive(rules(ladder=["pause"]))
        run.run(3, 4.0, 1.0)
        run.apply()
        run.run(2, 2.5, 1.0)
        run.run(20, *CALM)
        assert run.decisions[-1] == "resolve/recovered_by_itself"

    def test_manual_cut_takes_an_approved_command_back(self, drive, command_of):
        run = drive()
        run.run(3, 4.0, 1.0)
        cut = ReduceLrParameters(factor=0.1)
        command = command_of("m", cut, CommandState.APPLIED, actor="person:ann", at=3)
        run.take(run.brain.command_changed(command))
        assert run.cancelled == ["incident-1/rung-0/try-0"]
        assert run.decisions[-1] == "act/manual"

    def test_manual_rollback_without_incident_is_noted_only(self, drive, command_of):
        run = drive()
        run.run(3, *CALM)
        target = SnapshotTarget(snapshot_id="s", attempt=1, step=1)
        command = command_of(
            "m", RollbackParameters(target=target), CommandState.APPLIED, actor="person:ann"
        )
        assert not run.take(run.brain.command_changed(command))
