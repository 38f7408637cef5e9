"""What a person does to a run, at a real collector: done and audited, or refused in words."""

import math
from datetime import timedelta

import pytest

from dashboard.components.deeds import MODE, ORDER, SILENCE, WORD
from dashboard.components.forms import REASON_MISSING, Verb
from dashboard.handlers import deeds
from dashboard.handlers.deeds import OrderFields, SilenceFields

CUT = OrderFields(kind="reduce_lr", factor=0.5, hold_steps=10, ramp_steps=0)
PAUSE = OrderFields(kind="pause")
BACK = OrderFields(kind="rollback", snapshot="s4", skip_steps=5)
HOUR = SilenceFields(rule="loss_not_finite", end="minutes", minutes=60)
BLANK = [None, "", "   ", "\n\t\u00a0"]


class Person:
    """Ada at a page of a run."""

    def __init__(self, ask, collector, run_id):
        self.ask, self.collector, self.run_id = ask, collector, run_id

    def does(self, deed):
        return self.ask(self.collector, deed)

    def order(self, fields, reason="let me see", attempt=1):
        return self.does(lambda c: deeds.give_order(c, self.run_id, attempt, fields, reason))

    def preview(self, fields, attempt=1):
        shown = self.does(lambda c: deeds.preview_order(c, self.run_id, attempt, fields))
        return repr(shown)

    def word(self, verb, command_id, reason="I agree"):
        return self.does(lambda c: deeds.give_word(c, verb, command_id, reason))

    def mode(self, mode, reason="my watch"):
        return self.does(lambda c: deeds.change_mode(c, self.run_id, mode, reason))

    def silence(self, fields, reason="known", now=None):
        at = self.collector.clock.now() if now is None else now
        return self.does(lambda c: deeds.silence_rule(c, self.run_id, fields, reason, at))

    def commands(self):
        return self.does(lambda c: c.commands(self.run_id))

    def audit(self):
        return self.does(lambda c: c.audit(self.run_id))


@pytest.fixture
def meet(ask):
    return lambda collector, job: Person(ask, collector, job.run_id)


@pytest.fixture
def ada(meet, collector, job):
    return meet(collector, job)


def every_deed(ada, reason):
    """Try everything with one reason."""
    return [
        ada.order(PAUSE, reason),
        ada.word(Verb.APPROVE, "0" * 32, reason),
        ada.mode("observe", reason),
        ada.silence(HOUR, reason),
        ada.does(lambda c: deeds.end_silence(c, "0" * 32, reason)),
        ada.does(lambda c: deeds.turn_switch(c, True, reason)),
    ]


class TestReasons:
    @pytest.mark.parametrize("reason", BLANK, ids=repr)
    def test_without_one_nothing_is_done(self, ada, reason):
        before = ada.does(lambda c: c.audit())
        outcomes = every_deed(ada, reason)
        assert {(one.told, one.done) for one in outcomes} == {(REASON_MISSING, False)}
        assert ada.does(lambda c: c.audit()) == before

    @pytest.mark.parametrize("reason", ["x" * 2001, "half a character \ud83d"], ids=["long", "odd"])
    def test_one_that_the_audit_log_does_not_take_is_refused_in_words(self, ada, reason):
        before = ada.does(lambda c: c.audit())
        for outcome in every_deed(ada, reason):
            assert not outcome.done
            assert outcome.told.startswith("Reason: ")
            assert len(outcome.told) < 200
        assert ada.does(lambda c: c.audit()) == before

    def test_it_stands_in_the_audit_log_as_it_was_written(self, ada):
        reason = "<b>seen</b> 'it'; \u4f60\u597d \N{PARTY POPPER}\n" + "x" * 1900
        assert ada.order(PAUSE, reason).done
        entry = ada.audit()[-1]
        assert (entry.actor, entry.message) == ("person:ada", reason)


class TestOrders:
    def test_a_command_is_given_after_seeing_what_it_would_do(self, ada, job):
        job.report([1, 2])
        assert "0.5" in ada.preview(CUT)
        outcome = ada.order(CUT)
        assert outcome.done
        assert outcome.told == "Sent: multiply the learning rate by 0.5 for 10 steps"
        (command,) = ada.commands()
        assert (command.state, command.parameters.factor) == ("pending", 0.5)

    def test_the_same_one_is_not_given_twice_while_it_is_on_its_way(self, ada, job):
        assert ada.order(CUT).done
        again = ada.order(CUT)
        assert (again.done, len(ada.commands())) == (False, 1)
        assert "on its way already" in again.told
        job.report([1])  # the job has it now
        assert not ada.order(CUT).done
        assert ada.order(OrderFields(kind="reduce_lr", factor=0.4)).done
        assert ada.order(PAUSE).done

    def test_the_same_rollback_is_told_from_another(self, ada, job):
        job.report([1, 2, 3, 4], snapshots=[job.snapshot(4)])
        assert ada.order(BACK).done
        assert not ada.order(BACK).done
        assert ada.order(OrderFields(kind="rollback", snapshot="s4", skip_steps=6)).done

    def test_once_it_is_settled_it_can_be_given_again(self, ada):
        ada.order(CUT)
        (command,) = ada.commands()
        assert ada.word(Verb.CANCEL, command.id, "not yet").done
        assert ada.order(CUT).done

    def test_one_that_was_proposed_can_be_given_by_hand(self, ada, job):
        proposed = job.break_down()["parameters"]
        cut = proposed["reduce_lr"]
        fields = OrderFields(
            kind="rollback",
            snapshot=proposed["target"]["snapshot_id"],
            skip_steps=proposed["skip_steps"],
            with_cut=True,
            factor=cut["factor"],
            hold_steps=cut["hold_steps"],
            ramp_steps=cut["ramp_steps"],
        )
        assert ada.order(fields).done

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            (OrderFields(kind=None), "Choose a command"),
            (OrderFields(kind="rollback"), "Choose a snapshot to go back to"),
            (OrderFields(kind="reduce_lr", factor=""), "Factor: "),
            (OrderFields(kind="reduce_lr", factor=math.nan), "Factor: "),
            (OrderFields(kind="reduce_lr", factor=0.5, hold_steps=-1), "Hold steps: "),
        ],
    )
    def test_what_cannot_be_read_is_said_by_its_field_before_and_after(self, ada, fields, said):
        outcome = ada.order(fields)
        assert not outcome.done
        assert outcome.told.startswith(said)
        assert outcome.told in ada.preview(fields).replace('\\"', '"')
        assert ada.commands() == []

    @pytest.mark.parametrize(
        ("snapshot", "said"),
        [("s7", "holds no snapshot 's7'; it holds s4"), ("s5", "not finite")],
    )
    def test_a_snapshot_that_cannot_be_gone_back_to_is_told(self, ada, job, snapshot, said):
        held = [job.snapshot(4), job.snapshot(5) | {"finite": False}]
        job.report(range(1, 6), snapshots=held)
        fields = OrderFields(kind="rollback", snapshot=snapshot)
        outcome = ada.order(fields)
        assert not outcome.done
        assert said in outcome.told
        assert outcome.told[0].isupper()
        assert "notice-bad" in ada.preview(fields)

    def test_what_was_looked_at_before_a_rollback_is_not_done_after_it(self, ada, job):
        command = job.break_down()
        _, attempt = ada.does(lambda c: deeds.open_order(c, job.run_id))
        assert attempt == 1
        ada.word(Verb.APPROVE, command["id"])
        job.report([12], "NaN")
        job.carry_out(command)
        outcome = ada.order(CUT, attempt=attempt)
        assert not outcome.done
        assert outcome.told == (
            "The run is in attempt 2, not in 1: it has gone on since this was opened. "
            "Close this and look again"
        )
        assert "Close this" in ada.preview(CUT, attempt=attempt)
        assert ada.order(CUT, attempt=2).done

    def test_a_run_that_has_ended_takes_none(self, ada, job):
        job.report([1])
        job.end()
        outcome = ada.order(PAUSE)
        assert (outcome.told, outcome.done) == ("The run has finished", False)


class TestWords:
    @pytest.mark.parametrize(
        ("verb", "said"), [(Verb.APPROVE, "Approved: "), (Verb.REJECT, "Rejected: ")]
    )
    def test_a_proposal_is_answered_once(self, ada, job, verb, said):
        command = job.break_down()
        first = ada.word(verb, command["id"])
        assert first.done
        assert first.told.startswith(f"{said}roll back to step 4")
        for other in (Verb.APPROVE, Verb.REJECT):
            again = ada.word(other, command["id"])
            assert not again.done
            assert "only a proposed one can be" in again.told

    def test_what_the_job_has_cannot_be_taken_back(self, ada, job):
        ada.order(PAUSE)
        (command,) = ada.commands()
        job.report([1])
        outcome = ada.word(Verb.CANCEL, command.id, "too fast")
        assert not outcome.done
        assert "delivered" in outcome.told

    def test_a_command_that_does_not_exist_is_told(self, ada):
        outcome = ada.word(Verb.APPROVE, "0" * 32)
        assert not outcome.done
        assert "no command" in outcome.told

    def test_a_proposal_can_be_opened_when_it_can_no_longer_be_carried_out(self, ada, job):
        command = job.break_down()
        job.report([12], "NaN", snapshots=[])
        form = ada.does(lambda c: deeds.open_word(c, Verb.APPROVE, command["id"]))
        assert WORD.reason in repr(form)
        assert "Roll back to step 4" in repr(form)


class TestModesAndSwitches:
    def test_the_mode_is_told_as_it_is_now(self, ada):
        outcome = ada.mode("observe")
        assert (outcome.told, outcome.done) == ("The mode is observe now", True)
        assert ada.does(lambda c: c.run(ada.run_id)).mode == "observe"

    @pytest.mark.parametrize("mode", [None, "", "wild"])
    def test_a_mode_must_be_chosen(self, ada, mode):
        outcome = ada.mode(mode)
        assert (outcome.told, outcome.done) == ("Choose a mode", False)

    def test_the_switch_does_what_it_is_told_however_often(self, start_collector, make_job, meet):
        collector = start_collector()
        ada = meet(collector, make_job(collector))
        for disarmed in (True, True, False, False):
            assert ada.does(lambda c, to=disarmed: deeds.turn_switch(c, to, "a fire")).done
            assert ada.does(lambda c: c.control()).disarmed is disarmed


class TestSilences:
    def test_a_rule_is_silent_for_some_time(self, ada):
        assert ada.silence(HOUR).told == "Silenced: loss_not_finite"
        (silence,) = [
            one for one in ada.does(lambda c: c.control()).silences if one.run_id == ada.run_id
        ]
        assert silence.until - ada.collector.clock.now() == timedelta(minutes=60)
        ended = ada.does(lambda c: deeds.end_silence(c, silence.id, "fixed"))
        assert ended.done
        again = ada.does(lambda c: deeds.end_silence(c, silence.id, "fixed"))
        assert not again.done
        assert "no silence" in again.told

    def test_every_rule_is_called_so(self, ada):
        fields = SilenceFields(rule="*", end="minutes", minutes=1)
        assert ada.silence(fields).told == "Silenced: every rule"

    def test_it_can_end_with_a_step_that_is_to_come(self, ada, job):
        job.report(range(1, 11))
        assert ada.silence(SilenceFields(rule="r", end="step", until_step=10)).done
        late = ada.silence(SilenceFields(rule="r", end="step", until_step=9))
        assert not late.done
        assert "in the future" in late.told

    def test_an_end_that_is_past_by_the_collector_s_clock_is_refused(self, ada):
        yesterday = ada.collector.clock.now() - timedelta(days=1)
        outcome = ada.silence(HOUR, now=yesterday)
        assert not outcome.done
        assert "in the future" in outcome.told

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
        outcome = ada.silence(fields)
        assert not outcome.done
        assert outcome.told.startswith(said)


def test_every_dialog_opens_with_its_fields(ada, job):
    job.report(range(1, 5), snapshots=[job.snapshot(4)])
    order, attempt = ada.does(lambda c: deeds.open_order(c, job.run_id))
    mode = ada.does(lambda c: deeds.open_mode(c, job.run_id))
    silence = ada.does(lambda c: deeds.open_silence(c, job.run_id))
    assert attempt == 1
    for form, field in ((order, ORDER.snapshot), (mode, MODE.mode), (silence, SILENCE.until_step)):
        assert f"id='{field}'" in repr(form)
    assert "loss_not_finite" in repr(silence)


def test_with_the_collector_away_everything_says_so(start_collector, make_job, meet):
    collector = start_collector()
    job = make_job(collector)
    ada = meet(collector, job)
    collector.stop()
    for outcome in every_deed(ada, "it is late"):
        assert not outcome.done
        assert "does not answer" in outcome.told
    assert "does not answer" in ada.preview(CUT)
