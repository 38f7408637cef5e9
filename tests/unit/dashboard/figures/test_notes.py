from dashboard.figures.figure import MAX_TEXT, escape, plain
from dashboard.figures.scene import describe_command, describe_incident, describe_marker
from stabilizer.protocol.batches import MarkerKind
from stabilizer.protocol.commands import CommandState, ReduceLrParameters, RejectReason
from stabilizer.protocol.decisions import DecisionKind, DecisionReason, IncidentState


def test_markup_is_escaped():
    assert escape("<b>5 & 6</b> &lt;") == "&lt;b&gt;5 &amp; 6&lt;/b&gt; &amp;lt;"


def test_control_and_direction_characters_become_spaces():
    assert plain("a\nb\u202ec\x00\u2028d") == "a b c d"


def test_long_text_is_cut():
    text = plain("word " * 1000)
    assert len(text) <= MAX_TEXT
    assert text.endswith("...")


def test_note_of_an_incident(make):
    incident = make.incident(
        number=7, decision=DecisionKind.HOLD, reason=DecisionReason.COOLDOWN, message="4 <alerts>"
    )
    assert describe_incident(incident).split("\n") == [
        "Incident 7: divergence, open",
        "since step 40",
        "loss diverging",
        "on hold: in cooldown",
        "4 <alerts>",
    ]


def test_note_of_a_resolved_incident_has_its_end(make):
    incident = make.incident(state=IncidentState.RESOLVED, resolved_step=1200)
    assert "steps 40 to 1,200" in describe_incident(incident)


def test_note_of_a_rollback(make):
    command = make.command(
        parameters=make.rollback(to=1000, skip=200),
        step=1240,
        actor="person:ann",
        message="3 signals",
    )
    assert describe_command(command).split("\n") == [
        "Roll back to step 1,000 (snapshot s), skip 200 steps of data",
        "applied at step 1,240",
        "by ann: run is diverging",
        "3 signals",
    ]


def test_note_of_a_rejected_command_has_the_reason(make):
    command = make.command(
        parameters=ReduceLrParameters(factor=0.75, hold_steps=500),
        state=CommandState.REJECTED,
        why_not=RejectReason.REFUSED_BY_PERSON,
    )
    text = describe_command(command)
    assert text.startswith(
        "Multiply the learning rate by 0.75 for 500 steps\nrejected, sent at step 48\n"
    )
    assert "rejected by a user" in text


def test_note_of_a_proposal(make):
    command = make.command(state=CommandState.PROPOSED)
    assert "proposed at step 48, approval needed" in describe_command(command)


def test_note_of_a_marker_has_its_text(make):
    marker = make.marker(step=1200, kind=MarkerKind.LR_CHANGE, text="halved")
    assert describe_marker(marker) == "Learning rate change at step 1,200, attempt 1\nhalved"
