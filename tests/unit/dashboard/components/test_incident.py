import pytest
from dash import html

from dashboard.components.incident import incident_card, latest_decision, past_incidents, what_next
from stabilizer.protocol.decisions import (
    Decision,
    DecisionKind,
    DecisionReason,
    IncidentState,
)

DOCS = {"loss_jump": "The loss jumps at once."}


def decided(kind: DecisionKind, reason: DecisionReason, **override) -> Decision:
    return Decision(**({"step": 312, "attempt": 1, "kind": kind, "reason": reason} | override))


def test_card_shows_rules_in_order_decision_and_deadline(create_incident, text_of):
    waits = decided(DecisionKind.WAIT, DecisionReason.MAY_RECOVER, deadline_step=1412)
    text = text_of(incident_card(create_incident(waits), docs=DOCS, step=1400))
    assert "Incident 1 divergence open" in text
    assert "since step 305" in text
    assert text.index("loss_jump") < text.index("The loss jumps") < text.index("loss_diverging")
    assert "Waiting: may recover without action (at step 312)" in text
    assert "step 1,412 (12 steps left)" in text


@pytest.mark.parametrize("step", [None, 1412, 2000])
def test_past_or_unknown_deadline_counts_no_steps(create_incident, text_of, step):
    waits = decided(DecisionKind.WAIT, DecisionReason.MAY_RECOVER, deadline_step=1412)
    text = text_of(incident_card(create_incident(waits), docs={}, step=step))
    assert "step 1,412" in text
    assert "left" not in text


def test_latest_decision_without_a_list_of_decisions(create_incident):
    latest = latest_decision(create_incident())
    assert (latest.kind, latest.reason) == (DecisionKind.WAIT, DecisionReason.MAY_RECOVER)


@pytest.mark.parametrize(
    ("kind", "reason", "state", "word"),
    [
        (DecisionKind.WAIT, DecisionReason.SECOND_SIGNAL_MISSING, "open", "second signal"),
        (DecisionKind.HOLD, DecisionReason.MODE_OBSERVE, "open", "send a command"),
        (DecisionKind.HOLD, DecisionReason.DISARMED, "open", "armed again"),
        (DecisionKind.PROPOSE, DecisionReason.DIVERGENCE, "acting", "approve or reject"),
        (DecisionKind.ACT, DecisionReason.DIVERGENCE, "acting", "the job applies the command"),
        (DecisionKind.WAIT, DecisionReason.WATCHING, "watching", "relapse"),
        (DecisionKind.ESCALATE, DecisionReason.LADDER_EXHAUSTED, "open", "your decision needed"),
    ],
)
def test_next_step_follows_from_decision_and_state(create_incident, kind, reason, state, word):
    assert word in what_next(create_incident(decided(kind, reason), state=IncidentState(state)))


@pytest.mark.parametrize("state", list(IncidentState))
@pytest.mark.parametrize("kind", list(DecisionKind))
def test_only_resolved_incidents_have_no_next_step(create_incident, state, kind):
    for reason in DecisionReason:
        said = what_next(create_incident(decided(kind, reason), state=state))
        assert bool(said) is (state is not IncidentState.RESOLVED)


@pytest.mark.parametrize(
    ("helped", "reason", "said"),
    [
        (True, DecisionReason.INTERVENTION_HELPED, "intervention helped"),
        (False, DecisionReason.RECOVERED_BY_ITSELF, "intervention did not help"),
        (None, DecisionReason.RECOVERED_BY_ITSELF, "recovered without action"),
        (None, DecisionReason.RUN_ENDED, "run ended"),
        (None, DecisionReason.MAY_RECOVER, "closed"),
    ],
)
def test_past_incident_shows_whether_the_intervention_helped(
    create_incident, text_of, helped, reason, said
):
    incident = create_incident(
        decided(DecisionKind.RESOLVE, reason),
        state=IncidentState.RESOLVED,
        helped=helped,
        resolved_step=450,
    )
    text = text_of(past_incidents([incident]))
    assert said in text
    assert "steps 305 to 450" in text


def test_past_incidents_are_newest_first(create_incident, parts, text_of):
    some = [create_incident(id=f"i{n}", number=n, resolved_step=400) for n in (2, 10, 1)]
    titles = [part for part in parts(past_incidents(some)) if isinstance(part, html.Strong)]
    assert [text_of(title) for title in titles] == [f"Incident {n}" for n in (10, 2, 1)]


def test_incident_rolled_back_before_its_start_has_no_end(create_incident, text_of):
    text = text_of(past_incidents([create_incident(resolved_step=250)]))
    assert "from step 305" in text
    assert "to 250" not in text
