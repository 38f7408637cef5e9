"""State badges: always the word, with a mark whose shape says the same as its colour."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

from dash import html
from dash.development.base_component import Component

from dashboard.components.facts import aria
from dashboard.words.amounts import clock, moment
from dashboard.words.phrases import label, phrase
from stabilizer.protocol.commands import CommandState
from stabilizer.protocol.decisions import IncidentState, Mode, Severity
from stabilizer.protocol.runs import RunState


class Shape(StrEnum):
    """Outline of a mark, drawn by the style sheet."""

    DOT = "dot"
    RING = "ring"
    TRIANGLE = "triangle"
    SQUARE = "square"
    DIAMOND = "diamond"
    CHECK = "check"
    CROSS = "cross"
    BAR = "bar"


class Look(NamedTuple):
    """How a state looks: a colour of the theme, by name, and a shape."""

    tone: str
    shape: Shape


WARNING: Final = Look("yellow", Shape.TRIANGLE)
FAILURE: Final = Look("red", Shape.CROSS)


class Connection(StrEnum):
    """How fresh a page is."""

    LIVE = "live"
    CATCHING_UP = "catching_up"
    """The collector answers again; what was missed is being read."""
    AWAY = "away"
    """The collector does not answer."""
    EXPIRED = "expired"
    """The person must sign in again."""


LOOKS: Final[Mapping[type[StrEnum], Mapping[StrEnum, Look]]] = {
    RunState: {
        RunState.RUNNING: Look("teal", Shape.DOT),
        RunState.PAUSED: Look("yellow", Shape.BAR),
        RunState.FINISHED: Look("gray", Shape.SQUARE),
        RunState.FAILED: Look("red", Shape.CROSS),
        RunState.LOST: Look("orange", Shape.TRIANGLE),
    },
    Mode: {
        Mode.OBSERVE: Look("gray", Shape.RING),
        Mode.PROPOSE: Look("blue", Shape.DIAMOND),
        Mode.AUTO: Look("violet", Shape.DOT),
    },
    Severity: {
        Severity.NOTICE: Look("blue", Shape.RING),
        Severity.PRECURSOR: Look("yellow", Shape.DIAMOND),
        Severity.DIVERGENCE: Look("red", Shape.TRIANGLE),
    },
    IncidentState: {
        IncidentState.OPEN: Look("orange", Shape.TRIANGLE),
        IncidentState.ACTING: Look("violet", Shape.DIAMOND),
        IncidentState.WATCHING: Look("blue", Shape.RING),
        IncidentState.RESOLVED: Look("teal", Shape.CHECK),
    },
    CommandState: {
        CommandState.PROPOSED: Look("orange", Shape.DIAMOND),
        CommandState.PENDING: Look("blue", Shape.RING),
        CommandState.DELIVERED: Look("blue", Shape.DOT),
        CommandState.APPLIED: Look("teal", Shape.CHECK),
        CommandState.REJECTED: Look("gray", Shape.CROSS),
        CommandState.FAILED: Look("red", Shape.CROSS),
        CommandState.EXPIRED: Look("gray", Shape.BAR),
        CommandState.CANCELLED: Look("gray", Shape.CROSS),
    },
    Connection: {
        Connection.LIVE: Look("teal", Shape.DOT),
        Connection.CATCHING_UP: Look("blue", Shape.RING),
        Connection.AWAY: Look("orange", Shape.TRIANGLE),
        Connection.EXPIRED: Look("red", Shape.CROSS),
    },
}


def look(member: StrEnum) -> Look:
    """Return how a state looks."""
    return LOOKS[type(member)][member]


def mark(looks: Look) -> Component:
    """Draw a mark. It says nothing that a word beside it does not say."""
    return html.Span(className=f"mark mark-{looks.shape} tone-{looks.tone}", **aria(hidden="true"))


def badge(looks: Look, text: str, *, title: str = "") -> Component:
    """Build a badge from a mark and a word.

    Args:
        looks: Colour and shape.
        text: The word.
        title: What it means, shown when the pointer rests on it.
    """
    return html.Span(
        [mark(looks), html.Span(text)],
        className=f"badge tone-{looks.tone}",
        title=title or None,
    )


def run_state_badge(state: RunState) -> Component:
    """Say whether a run trains."""
    return _state_badge(state)


def mode_badge(mode: Mode) -> Component:
    """Say how far the policy may go."""
    return _state_badge(mode)


def severity_badge(severity: Severity) -> Component:
    """Say how bad it is."""
    return _state_badge(severity)


def incident_state_badge(state: IncidentState) -> Component:
    """Say where an incident stands."""
    return _state_badge(state)


def command_state_badge(state: CommandState) -> Component:
    """Say where a command stands."""
    return _state_badge(state)


def healthy_badge(*, healthy: bool, finite: bool = True) -> Component:
    """Say whether a snapshot may be gone back to."""
    if not finite:
        title = "it holds values that are not finite: the job would refuse it"
        return badge(Look("red", Shape.CROSS), "not finite", title=title)
    if not healthy:
        title = "finite, but an alert followed it, or too few steps have followed it yet"
        return badge(Look("yellow", Shape.DIAMOND), "not held healthy", title=title)
    title = "finite, and no alert in the steps after it"
    return badge(Look("teal", Shape.CHECK), "healthy", title=title)


def connection_badge(connection: Connection, *, since: datetime | None = None) -> Component:
    """Say how fresh the page is, to screen readers too when it changes.

    Args:
        connection: State of the page's connection.
        since: When the collector was last heard, if it is away.
    """
    text = _CONNECTION_WORDS[connection]
    title = None
    if connection is Connection.AWAY and since is not None:
        text, title = f"{text} since {clock(since)} UTC", f"last heard {moment(since)}"
    looks = look(connection)
    return html.Span(
        [mark(looks), html.Span(text)],
        className=f"badge tone-{looks.tone} connection-{connection.value.replace('_', '-')}",
        title=title,
        role="status",
    )


_CONNECTION_WORDS: Final[Mapping[Connection, str]] = {
    Connection.LIVE: "live",
    Connection.CATCHING_UP: "catching up",
    Connection.AWAY: "collector away",
    Connection.EXPIRED: "session expired",
}


def _state_badge(state: StrEnum) -> Component:
    return badge(look(state), label(state), title=phrase(state))
