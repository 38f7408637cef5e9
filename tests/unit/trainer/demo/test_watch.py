import io

from rich.console import Console

from stabilizer.protocol.commands import CommandState
from stabilizer.protocol.decisions import AlertState, DecisionKind, DecisionReason
from trainer.demo.console import StoryTeller
from trainer.demo.watch import ArmWatch, Event


def test_each_thing_is_told_once(make):
    watch = ArmWatch("protected")
    look = ([make.alert()], [make.incident(make.decision())], [make.rollback()])
    assert [event.what for event in watch.news(*look)] == ["seen", "decided", "done"]
    assert watch.news(*look) == []


def test_series_of_one_rule_at_one_step_are_one_line(make):
    alerts = [make.alert(id=str(number), series=f"s{number}") for number in range(5)]
    (event,) = ArmWatch("protected").news(alerts, [], [])
    assert "on 5 series" in event.text


def test_a_pending_alert_is_not_told(make):
    pending = make.alert(state=AlertState.PENDING, firing_step=None)
    assert ArmWatch("protected").news([pending], [], []) == []


def test_later_decisions_of_the_same_incident_are_told(make):
    watch = ArmWatch("protected")
    watch.news([], [make.incident(make.decision())], [])
    resolved = make.decision(DecisionKind.RESOLVE, DecisionReason.RECOVERED_BY_ITSELF, 170)
    (event,) = watch.news([], [make.incident(make.decision(), resolved)], [])
    assert (event.step, event.text) == (170, "incident 1: resolve because recovered by itself")


def test_a_command_is_told_when_it_is_settled(make):
    watch = ArmWatch("protected")
    assert watch.news([], [], [make.rollback(state=CommandState.DELIVERED, result=None)]) == []
    (event,) = watch.news([], [], [make.rollback()])
    assert "the job reads back step 250" in event.text


def test_a_text_with_brackets_is_printed_as_it_is():
    out = io.StringIO()
    teller = StoryTeller(Console(file=out, width=200, highlight=False))
    teller.tell(Event(arm="protected", step=3, what="seen", text='loss{source="[red]"}'))
    assert '{source="[red]"}' in out.getvalue()
