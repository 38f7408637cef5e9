import pytest

from dashboard.figures.palette import SEVERITY_COLOURS, veil
from dashboard.figures.scene import Events, event_notes, event_shapes, event_traces
from stabilizer.protocol.commands import CommandKind, CommandState, PauseParameters
from stabilizer.protocol.decisions import IncidentState, Severity

END = 200.0


def traces(**given):
    return {trace["uid"]: trace for trace in event_traces(Events(**given))}


def test_no_events_draw_nothing():
    assert event_shapes(Events(), END) == event_traces(Events()) == event_notes(Events(), END) == []


def test_a_resolved_incident_is_a_band_from_its_first_alert_to_its_end(make):
    incident = make.incident(
        state=IncidentState.RESOLVED, resolved_step=90, severity=Severity.PRECURSOR
    )
    (band,) = event_shapes(Events(incidents=[incident]), END)
    assert (band["x0"], band["x1"], band["y0"], band["y1"]) == (40, 90, 0, 1)
    assert band["fillcolor"] == veil(SEVERITY_COLOURS[Severity.PRECURSOR], 0.12)


def test_an_open_incident_reaches_over_the_edge_of_the_panel(make):
    (band,) = event_shapes(Events(incidents=[make.incident()]), END)
    assert band["x1"] > END + 100


def test_band_keeps_its_steps_after_a_rollback_below_it(make):
    incident = make.incident(
        first_step=100, opened_step=105, resolved_step=60, decisions=(make.decision(130),)
    )
    (band,) = event_shapes(Events(incidents=[incident]), END)
    assert (band["x0"], band["x1"]) == (100, 130)


def test_an_incident_is_marked_at_both_ends(make):
    marks = traces(incidents=[make.incident(resolved_step=90)])["incidents"]
    assert marks["x"] == [40, 90]
    assert marks["marker"]["symbol"] == ["circle", "circle-open"]


@pytest.mark.parametrize(
    ("state", "trace", "dash", "is_crossed"),
    [
        (CommandState.APPLIED, "applied", "solid", False),
        (CommandState.PROPOSED, "waiting", "dot", False),
        (CommandState.DELIVERED, "waiting", "dash", False),
        (CommandState.REJECTED, "waiting", "dot", True),
        (CommandState.EXPIRED, "waiting", "dot", True),
        (CommandState.CANCELLED, "waiting", "dot", True),
    ],
)
def test_style_of_a_command_shows_its_state(make, state, trace, dash, is_crossed):
    command = make.command(state=state)
    drawn = traces(commands=[command])
    is_hollow = drawn[trace]["marker"]["symbol"][0].endswith("-open")
    assert is_hollow == (state is not CommandState.APPLIED)
    assert ("crosses" in drawn) == is_crossed
    assert event_shapes(Events(commands=[command]), END)[0]["line"]["dash"] == dash


def test_kinds_of_command_have_symbols_of_their_own(make):
    commands = [
        make.command(1, make.rollback(to=10)),
        make.command(2),
        make.command(3, PauseParameters(kind=CommandKind.PAUSE)),
    ]
    assert len(set(traces(commands=commands)["applied"]["marker"]["symbol"])) == 3


def test_command_is_at_its_applied_step_else_at_its_issued_step(make):
    applied, given = make.command(1, step=50), make.command(2, state=CommandState.PROPOSED, step=70)
    shapes = event_shapes(Events(commands=[applied, given]), END)
    assert [shape["x0"] for shape in shapes] == [50, 68]


def test_a_command_without_a_step_is_left_out(make):
    lost = make.command(state=CommandState.PENDING, issued_step=None)
    assert traces(commands=[lost]) == {}


def test_commands_at_one_step_are_stacked(make):
    commands = [make.command(1), make.command(2), make.command(3, step=60)]
    heights = traces(commands=commands)["applied"]["y"]
    assert heights[0] > heights[1]
    assert heights[0] == heights[2]
    assert [note["first"] for note in event_notes(Events(commands=commands), END)] == [50, 50, 60]


def test_rollback_marks_its_target(make):
    commands = [make.command(1, make.rollback(to=20), step=80)]
    drawn = traces(commands=commands)
    assert drawn["paths"]["x"] == [80, 20, None]
    assert drawn["targets"]["x"] == [20]
    texts = {note["first"]: note["text"] for note in event_notes(Events(commands=commands), END)}
    assert texts[20] == "Rolled back to here\nfrom step 80"


def test_a_rollback_that_was_not_carried_out_went_nowhere(make):
    command = make.command(1, make.rollback(to=20), state=CommandState.PROPOSED)
    assert not {"paths", "targets"} & set(traces(commands=[command]))


def test_markers_at_one_step_share_a_tick(make):
    events = Events(markers=[make.marker(10, text="a"), make.marker(10, text="b")])
    assert traces(markers=events.markers)["markers"]["x"] == [10]
    assert [note["text"][-1] for note in event_notes(events, END)] == ["a", "b"]


def test_the_note_of_an_incident_reaches_as_far_as_its_band(make):
    events = Events(incidents=[make.incident()])
    (note,), (band,) = event_notes(events, END), event_shapes(events, END)
    assert (note["first"], note["last"]) == (band["x0"], band["x1"])
