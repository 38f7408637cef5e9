import io

from rich.console import Console

from stabilizer.protocol.commands import CommandState
from stabilizer.protocol.decisions import AlertState, DecisionKind, DecisionReason
from trainer.demo.console import StoryTeller
from trainer.demo.watch import ArmWatch, Event


def test_each_thing_is_reported_once(make):
    watch = ArmWatch("protected")
    look = ([make.alert()], [make.incident(make.decision())], [make.rollback()])
    assert [event.what for event in watch.news(400, *look)] == ["seen", "decided", "done"]
    assert watch.news(400, *look) == []


def test_series_of_one_rule_at_one_step_are_one_line(make):
    alerts = [make.alert(id=str(number), series=f"s{number}") for number in range(5)]
    (event,) = ArmWatch("protected").news(400, alerts, [], [])
    assert "on 5 series" in event.text


def test_a_pending_alert_is_not_reported(make):
    pending = make.alert(state=AlertState.PENDING, firing_step=None)
    assert ArmWatch("protected").news(400, [pending], [], []) == []


def test_later_decisions_of_the_same_incident_are_reported(make):
    watch = ArmWatch("protected")
    watch.news(400, [], [make.incident(make.decision())], [])
    resolved = make.decision(DecisionKind.RESOLVE, DecisionReason.RECOVERED_BY_ITSELF, 170)
    (event,) = watch.news(400, [], [make.incident(make.decision(), resolved)], [])
    assert (event.step, event.text) == (170, "incident 1: resolve because recovered by itself")


def test_a_command_is_reported_when_it_is_settled(make):
    watch = ArmWatch("protected")
    assert watch.news(400, [], [], [make.rollback(state=CommandState.DELIVERED, result=None)]) == []
    (event,) = watch.news(400, [], [], [make.rollback()])
    assert "the job reads back step 250" in event.text


def test_a_text_with_brackets_is_printed_as_it_is():
    out = io.StringIO()
    teller = StoryTeller(Console(file=out, width=200, highlight=False))
    teller.report(
        Event(arm="protected", attempt=1, step=3, what="seen", text='loss{source="[red]"}')
    )
    assert '{source="[red]"}' in out.getvalue()


def test_what_happens_is_reported_when_the_run_gets_there():
    watch = ArmWatch("protected", [(150, "bad documents"), (275, "restart")])
    assert watch.news(149, [], [], []) == []
    assert [event.text for event in watch.news(160, [], [], [])] == ["bad documents"]
    assert [event.text for event in watch.news(500, [], [], [])] == ["restart"]
    assert watch.news(500, [], [], []) == []


def test_what_follows_a_rollback_is_reported_after_it_although_the_step_is_smaller(make):
    decision = make.decision(DecisionKind.WAIT, DecisionReason.WATCHING, 250)
    later = make.incident(decision.model_copy(update={"attempt": 2}))
    events = ArmWatch("protected").news(400, [], [later], [make.rollback()])
    assert [(event.attempt, event.step) for event in events] == [(1, 300), (2, 250)]
