"""The open incident as a card, past ones as a list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from dash import html
from dash.development.base_component import Component

from dashboard.components.elements import (
    BadgeStyle,
    Shape,
    badge,
    facts_line,
    facts_table,
    incident_state_badge,
    severity_badge,
)
from dashboard.formatting import clock, count, counted, moment
from dashboard.text import capital, phrase
from stabilizer.protocol.decisions import (
    Decision,
    DecisionKind,
    DecisionReason,
    Incident,
    IncidentState,
)

_AFTER_WAITING: Final[Mapping[DecisionReason, str]] = {
    DecisionReason.MAY_RECOVER: "closes if it recovers; acts if it does not",
    DecisionReason.SECOND_SIGNAL_MISSING: "acts on a second signal; closes if quiet",
    DecisionReason.COMMAND_IN_FLIGHT: "continues when that command has finished",
}
_AFTER_HOLDING: Final[Mapping[DecisionReason, str]] = {
    DecisionReason.MODE_OBSERVE: (
        "no automatic action in this mode: send a command or change the mode"
    ),
    DecisionReason.DISARMED: "no automatic action until armed again; you can still send commands",
    DecisionReason.SILENCED: "no automatic action until the silence ends",
    DecisionReason.BUDGET_SPENT: "acts when the budget allows it, if still needed",
    DecisionReason.COOLDOWN: "acts after the cooldown, if still needed",
    DecisionReason.NO_HEALTHY_SNAPSHOT: "continues with a ladder step that needs no snapshot",
    DecisionReason.COMMAND_FAILED: "retries or takes the next ladder step, if still needed",
}
_ESCALATED: Final = "no automatic action left: your decision needed"
_ACTING: Final = "the job applies the command at a step boundary and reads back the result"
_PROPOSED: Final = "approve or reject the proposal; unanswered, it is proposed again while needed"
_WATCHING: Final = "closes if the loss has recovered; a relapse takes the next ladder step"


def incident_card(
    incident: Incident,
    *,
    docs: Mapping[str, str],
    step: int | None = None,
) -> Component:
    """Show the incident that is open.

    Args:
        incident: The incident.
        docs: Description of each rule, by name; may be incomplete.
        step: Current step of the run, to count the steps left.
    """
    return html.Article(
        [
            _header(incident),
            html.Ol([_rule(rule, docs) for rule in incident.rules], className="rules"),
            facts_table(list(_lines(incident, step))),
        ],
        className=f"card incident-card incident-{incident.severity}",
    )


def _header(incident: Incident) -> Component:
    facts: list[str | Component] = [
        f"since step {count(incident.first_step)}",
        html.Span(
            f"opened at step {count(incident.opened_step)}, {clock(incident.opened_at)} UTC",
            title=moment(incident.opened_at),
        ),
        f"attempt {incident.attempt}",
    ]
    badges = [severity_badge(incident.severity), incident_state_badge(incident.state)]
    title = html.Div([html.H4(f"Incident {incident.number}"), *badges], className="card-title")
    return html.Header([title, facts_line(facts)])


def _rule(rule: str, docs: Mapping[str, str]) -> Component:
    doc = docs.get(rule, "")
    return html.Li(
        [html.Code(rule), *([html.Div(doc, className="rule-doc")] if doc else [])],
    )


def _lines(incident: Incident, step: int | None) -> Iterator[tuple[str, str]]:
    latest = latest_decision(incident)
    reason = phrase(latest.reason)
    if reason in latest.message:
        reason = latest.message
    yield "decision", f"{capital(phrase(latest.kind))}: {reason} (at step {count(latest.step)})"
    if latest.message and latest.message != reason:
        yield "details", capital(latest.message)
    deadline = latest.deadline_step
    if deadline is not None:
        steps_left = 0 if step is None else deadline - step
        more = f" ({counted(steps_left, 'step')} left)" if steps_left > 0 else ""
        yield "until", f"step {count(deadline)}{more}"
    following = what_next(incident)
    if following:
        yield "next", capital(following)


def latest_decision(incident: Incident) -> Decision:
    """Return the latest decision; an incident whose list is empty still names it."""
    if incident.decisions:
        return incident.decisions[-1]
    return Decision(
        step=incident.opened_step,
        attempt=incident.attempt,
        kind=incident.decision,
        reason=incident.reason,
        message=incident.message,
        rung=incident.rung,
    )


def what_next(incident: Incident) -> str:
    """Return what happens next without user action; empty if the incident is resolved."""
    kind, reason = incident.decision, incident.reason
    match incident.state:
        case IncidentState.RESOLVED:
            return ""
        case IncidentState.WATCHING:
            return _WATCHING
        case IncidentState.ACTING:
            return _PROPOSED if kind is DecisionKind.PROPOSE else _ACTING
    if kind is DecisionKind.ESCALATE:
        return _ESCALATED
    texts = _AFTER_HOLDING if kind is DecisionKind.HOLD else _AFTER_WAITING
    return texts.get(reason, "re-evaluated at every step")


def past_incidents(incidents: Sequence[Incident]) -> Component:
    """List resolved incidents, newest first, with whether the intervention helped."""
    ordered = sorted(incidents, key=lambda incident: incident.number, reverse=True)
    return html.Ul([_past(one) for one in ordered], className="past-incidents")


def _past(incident: Incident) -> Component:
    title = html.Strong(f"Incident {incident.number}")
    return html.Li(
        [
            html.Div(
                [title, severity_badge(incident.severity), _outcome(incident)],
                className="card-title",
            ),
            facts_line([_span(incident), f"attempt {incident.attempt}", _rules(incident)]),
        ]
    )


def _span(incident: Incident) -> str:
    first, last = incident.first_step, incident.resolved_step
    if last is None or last < first:  # a rollback went back before the first step
        return f"from step {count(first)}"
    return f"steps {count(first)} to {count(last)}"


def _rules(incident: Incident) -> Component:
    shown = incident.rules[:2]
    more = len(incident.rules) - len(shown)
    text = ", ".join(shown) + (f" and {count(more)} more" if more else "")
    return html.Span(text or "no rule", title=", ".join(incident.rules))


def _outcome(incident: Incident) -> Component:
    if incident.helped is True:
        return badge(BadgeStyle("teal", Shape.CHECK), "intervention helped")
    if incident.helped is False:
        title = "alerts resolved, but the loss is no better than at the incident"
        return badge(BadgeStyle("orange", Shape.CROSS), "intervention did not help", title=title)
    texts = {
        DecisionReason.RECOVERED_BY_ITSELF: "recovered without action",
        DecisionReason.RUN_ENDED: "run ended",
        DecisionReason.CLOSED_BY_PERSON: "closed by a user",
    }
    return badge(BadgeStyle("gray", Shape.SQUARE), texts.get(incident.reason, "closed"))
