"""Actions against a real collector: done and audited, or refused with a reason."""

import math
from datetime import timedelta

import pytest

from dashboard.actions.answer import FORM, Verb, answer_command, open_answer
from dashboard.actions.arming import set_armed
from dashboard.actions.end_silence import end_silence
from dashboard.actions.form import REASON_MISSING
from dashboard.actions.mode import change_mode
from dashboard.actions.send_command import (
    SNAPSHOT,
    CommandFields,
    open_send,
    preview_command,
    send_command,
)
from dashboard.actions.silence import UNTIL_STEP, SilenceFields, open_silence, silence_rule

CUT = CommandFields(kind="reduce_lr", factor=0.5, hold_steps=10, ramp_steps=0)
PAUSE = CommandFields(kind="pause")
BACK = CommandFields(kind="rollback", snapshot="s4", skip_steps=5)
HOUR = SilenceFields(rule="loss_not_finite", end="minutes", minutes=60)
BLANK = [None, "", "   ", "\n\t\u00a0"]


class Operator:
    """Ada at a page of a run."""

    def __init__(self, ask, collector, run_id):
        self.ask, self.collector, self.run_id = ask, collector, run_id

    def does(self, call):
        return self.ask(self.collector, call)

    def send(self, fields, reason="let me see", attempt=1):
        return self.does(lambda c: send_command(c, self.run_id, attempt, fields, reason))

    def preview(self, fields, attempt=1):
        shown = self.does(lambda c: preview_command(c, self.run_id, attempt, fields))
        return repr(shown)

    def answer(self, verb, command_id, reason="I agree"):
        return self.does(lambda c: answer_command(c, verb, command_id, reason))

    def mode(self, mode, reason="my watch"):
        return self.does(lambda c: change_mode(c, self.run_id, mode, reason))

    def silence(self, fields, reason="known", now=None):
        at = self.collector.clock.now() if now is None else now
        return self.does(lambda c: silence_rule(c, self.run_id, fields, reason, at))

    def commands(self):
        return self.does(lambda c: c.commands(self.run_id))

    def audit(self):
        return self.does(lambda c: c.audit(self.run_id))


@pytest.fixture
def meet(ask):
    return lambda collector, job: Operator(ask, collector, job.run_id)


@pytest.fixture
def ada(meet, collector, job):
    return meet(collector, job)


def every_action(ada, reason):
    """Try everything with one reason."""
    return [
        ada.send(PAUSE, reason),
        ada.answer(Verb.APPROVE, "0" * 32, reason),
        ada.mode("observe", reason),
        ada.silence(HOUR, reason),
        ada.does(lambda c: end_silence(c, "0" * 32, reason)),
        ada.does(lambda c: set_armed(c, True, reason)),
    ]


class TestReasons:
    @pytest.mark.parametrize("reason", BLANK, ids=repr)
    def test_without_one_nothing_is_done(self, ada, reason):
        before = ada.does(lambda c: c.audit())
        results = every_action(ada, reason)
        assert {(one.message, one.done) for one in results} == {(REASON_MISSING, False)}
        assert ada.does(lambda c: c.audit()) == before

    @pytest.mark.parametrize("reason", ["x" * 2001, "half a character \ud83d"], ids=["long", "odd"])
    def test_invalid_reason_is_rejected(self, ada, reason):
        before = ada.does(lambda c: c.audit())
        for result in every_action(ada, reason):
            assert not result.done
            assert result.message.startswith("Reason: ")
            assert len(result.message) < 200
        assert ada.does(lambda c: c.audit()) == before

    def test_reason_is_recorded_verbatim(self, ada):
        reason = "<b>seen</b> 'it'; \u4f60\u597d \N{PARTY POPPER}\n" + "x" * 1900
        assert ada.send(PAUSE, reason).done
        entry = ada.audit()[-1]
        assert (entry.actor, entry.message) == ("person:ada", reason)


class TestCommands:
    def test_a_command_is_given_after_seeing_what_it_would_do(self, ada, job):
        job.report([1, 2])
        assert "0.5" in ada.preview(CUT)
        result = ada.send(CUT)
        assert result.done
        assert result.message == "Sent: multiply the learning rate by 0.5 for 10 steps"
        (command,) = ada.commands()
        assert (command.state, command.parameters.factor) == ("pending", 0.5)

    def test_the_same_one_is_not_given_twice_while_it_is_on_its_way(self, ada, job):
        assert ada.send(CUT).done
        again = ada.send(CUT)
        assert (again.done, len(ada.commands())) == (False, 1)
        assert "already in flight" in again.message
        job.report([1])  # the job has it now
        assert not ada.send(CUT).done
        assert ada.send(CommandFields(kind="reduce_lr", factor=0.4)).done
        assert ada.send(PAUSE).done

    def test_another_rollback_is_not_a_duplicate(self, ada, job):
        job.report([1, 2, 3, 4], snapshots=[job.snapshot(4)])
        assert ada.send(BACK).done
        assert not ada.send(BACK).done
        assert ada.send(CommandFields(kind="rollback", snapshot="s4", skip_steps=6)).done

    def test_once_it_is_settled_it_can_be_given_again(self, ada):
        ada.send(CUT)
        (command,) = ada.commands()
        assert ada.answer(Verb.CANCEL, command.id, "not yet").done
        assert ada.send(CUT).done

    def test_one_that_was_proposed_can_be_given_by_hand(self, ada, job):
        proposed = job.break_down()["parameters"]
        cut = proposed["reduce_lr"]
        fields = CommandFields(
            kind="rollback",
            snapshot=proposed["target"]["snapshot_id"],
            skip_steps=proposed["skip_steps"],
            with_cut=True,
            factor=cut["factor"],
            hold_steps=cut["hold_steps"],
            ramp_steps=cut["ramp_steps"],
        )
        assert ada.send(fields).done

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            (CommandFields(kind=None), "Choose a command"),
            (CommandFields(kind="rollback"), "Choose a snapshot"),
            (CommandFields(kind="reduce_lr", factor=""), "Factor: "),
            (CommandFields(kind="reduce_lr", factor=math.nan), "Factor: "),
            (CommandFields(kind="reduce_lr", factor=0.5, hold_steps=-1), "Hold steps: "),
        ],
    )
    def test_what_cannot_be_read_is_said_by_its_field_before_and_after(self, ada, fields, said):
        result = ada.send(fields)
        assert not result.done
        assert result.message.startswith(said)
        assert result.message in ada.preview(fields).replace('\\"', '"')
        assert ada.commands() == []

    @pytest.mark.parametrize(
        ("snapshot", "said"),
        [("s7", "holds no snapshot 's7'; it holds s4"), ("s5", "non-finite")],
    )
    def test_unusable_snapshot_is_rejected(self, ada, job, snapshot, said):
        held = [job.snapshot(4), job.snapshot(5) | {"finite": False}]
        job.report(range(1, 6), snapshots=held)
        fields = CommandFields(kind="rollback", snapshot=snapshot)
        result = ada.send(fields)
        assert not result.done
        assert said in result.message
        assert result.message[0].isupper()
        assert "notice-bad" in ada.preview(fields)

    def test_form_opened_before_a_rollback_is_rejected_after_it(self, ada, job):
        command = job.break_down()
        _, attempt = ada.does(lambda c: open_send(c, job.run_id))
        assert attempt == 1
        ada.answer(Verb.APPROVE, command["id"])
        job.report([12], "NaN")
        job.carry_out(command)
        result = ada.send(CUT, attempt=attempt)
        assert not result.done
        assert result.message == (
            "The run is in attempt 2, not in 1. Close this dialog and open it again"
        )
        assert "Close this dialog" in ada.preview(CUT, attempt=attempt)
        assert ada.send(CUT, attempt=2).done

    def test_a_run_that_has_ended_takes_none(self, ada, job):
        job.report([1])
        job.end()
        result = ada.send(PAUSE)
        assert (result.message, result.done) == ("The run has finished", False)


class TestAnswers:
    @pytest.mark.parametrize(
        ("verb", "said"), [(Verb.APPROVE, "Approved: "), (Verb.REJECT, "Rejected: ")]
    )
    def test_a_proposal_is_answered_once(self, ada, job, verb, said):
        command = job.break_down()
        first = ada.answer(verb, command["id"])
        assert first.done
        assert first.message.startswith(f"{said}roll back to step 4")
        for other in (Verb.APPROVE, Verb.REJECT):
            again = ada.answer(other, command["id"])
            assert not again.done
            assert "only a proposed one can be" in again.message

    def test_what_the_job_has_cannot_be_taken_back(self, ada, job):
        ada.send(PAUSE)
        (command,) = ada.commands()
        job.report([1])
        result = ada.answer(Verb.CANCEL, command.id, "too fast")
        assert not result.done
        assert "delivered" in result.message

    def test_unknown_command_is_reported(self, ada):
        result = ada.answer(Verb.APPROVE, "0" * 32)
        assert not result.done
        assert "no command" in result.message

    def test_a_proposal_can_be_opened_when_it_can_no_longer_be_carried_out(self, ada, job):
        command = job.break_down()
        job.report([12], "NaN", snapshots=[])
        form = ada.does(lambda c: open_answer(c, Verb.APPROVE, command["id"]))
        assert FORM.reason in repr(form)
        assert "Roll back to step 4" in repr(form)


class TestModesAndSwitches:
    def test_form_shows_the_current_mode(self, ada):
        result = ada.mode("observe")
        assert (result.message, result.done) == ("Mode changed to observe", True)
        assert ada.does(lambda c: c.run(ada.run_id)).mode == "observe"

    @pytest.mark.parametrize("mode", [None, "", "wild"])
    def test_a_mode_must_be_chosen(self, ada, mode):
        result = ada.mode(mode)
        assert (result.message, result.done) == ("Choose a mode", False)

    def test_arming_and_disarming_are_idempotent(self, start_collector, make_job, meet):
        collector = start_collector()
        ada = meet(collector, make_job(collector))
        for disarmed in (True, True, False, False):
            assert ada.does(lambda c, to=disarmed: set_armed(c, to, "a fire")).done
            assert ada.does(lambda c: c.control()).disarmed is disarmed


class TestSilences:
    def test_a_rule_is_silent_for_some_time(self, ada):
        assert ada.silence(HOUR).message == "Silenced: loss_not_finite"
        (silence,) = [
            one for one in ada.does(lambda c: c.control()).silences if one.run_id == ada.run_id
        ]
        assert silence.until - ada.collector.clock.now() == timedelta(minutes=60)
        ended = ada.does(lambda c: end_silence(c, silence.id, "fixed"))
        assert ended.done
        again = ada.does(lambda c: end_silence(c, silence.id, "fixed"))
        assert not again.done
        assert "no silence" in again.message

    def test_every_rule_is_called_so(self, ada):
        fields = SilenceFields(rule="*", end="minutes", minutes=1)
        assert ada.silence(fields).message == "Silenced: all rules"

    def test_it_can_end_with_a_step_that_is_to_come(self, ada, job):
        job.report(range(1, 11))
        assert ada.silence(SilenceFields(rule="r", end="step", until_step=10)).done
        late = ada.silence(SilenceFields(rule="r", end="step", until_step=9))
        assert not late.done
        assert "in the future" in late.message

    def test_an_end_that_is_past_by_the_collector_s_clock_is_refused(self, ada):
        yesterday = ada.collector.clock.now() - timedelta(days=1)
        result = ada.silence(HOUR, now=yesterday)
        assert not result.done
        assert "in the future" in result.message

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            (SilenceFields(rule=None, end="minutes", minutes=1), "Choose a rule"),
            (SilenceFields(rule="", end="minutes", minutes=1), "Choose a rule"),
            (SilenceFields(rule="x" * 201, end="minutes", minutes=1), "Rule: "),
            (SilenceFields(rule="r", end="minutes", minutes=""), "Time: "),
            (SilenceFields(rule="r", end="minutes", minutes=10**9), "Time: "),
            (SilenceFields(rule="r", end=None, minutes=-1), "Time: "),
            (SilenceFields(rule="r", end="step", until_step=""), "Until step: "),
            (SilenceFields(rule="r", end="step", until_step=1e300), "Until step: "),
        ],
    )
    def test_what_cannot_be_read_is_said_by_its_field(self, ada, fields, said):
        result = ada.silence(fields)
        assert not result.done
        assert result.message.startswith(said)


def test_every_dialog_opens_with_its_fields(ada, job):
    job.report(range(1, 5), snapshots=[job.snapshot(4)])
    order, attempt = ada.does(lambda c: open_send(c, job.run_id))
    silence = ada.does(lambda c: open_silence(c, job.run_id))
    assert attempt == 1
    for form, field in ((order, SNAPSHOT), (silence, UNTIL_STEP)):
        assert f"id='{field}'" in repr(form)
    assert "loss_not_finite" in repr(silence)


def test_with_the_collector_away_everything_says_so(start_collector, make_job, meet):
    collector = start_collector()
    job = make_job(collector)
    ada = meet(collector, job)
    collector.stop()
    for result in every_action(ada, "it is late"):
        assert not result.done
        assert "not responding" in result.message
    assert "not responding" in ada.preview(CUT)
