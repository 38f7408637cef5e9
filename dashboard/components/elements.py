"""State badges: always the word, with a mark whose shape says the same as its colour."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeAlias

from dash import html
from dash.development.base_component import Component

from dashboard.formatting import ago, clock, left, moment, utc
from dashboard.text import label, phrase
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


class BadgeStyle(NamedTuple):
    """How a state looks: a colour of the theme, by name, and a shape."""

    tone: str
    shape: Shape


WARNING: Final = BadgeStyle("yellow", Shape.TRIANGLE)
FAILURE: Final = BadgeStyle("red", Shape.CROSS)


class Connection(StrEnum):
    """How fresh a page is."""

    LIVE = "live"
    CATCHING_UP = "catching_up"
    """The collector answers again; what was missed is being read."""
    AWAY = "away"
    """The collector does not answer."""
    EXPIRED = "expired"
    """The person must sign in again."""


STYLES: Final[Mapping[type[StrEnum], Mapping[StrEnum, BadgeStyle]]] = {
    RunState: {
        RunState.RUNNING: BadgeStyle("teal", Shape.DOT),
        RunState.PAUSED: BadgeStyle("yellow", Shape.BAR),
        RunState.FINISHED: BadgeStyle("gray", Shape.SQUARE),
        RunState.FAILED: BadgeStyle("red", Shape.CROSS),
        RunState.LOST: BadgeStyle("orange", Shape.TRIANGLE),
    },
    Mode: {
        Mode.OBSERVE: BadgeStyle("gray", Shape.RING),
        Mode.PROPOSE: BadgeStyle("blue", Shape.DIAMOND),
        Mode.AUTO: BadgeStyle("violet", Shape.DOT),
    },
    Severity: {
        Severity.NOTICE: BadgeStyle("blue", Shape.RING),
        Severity.PRECURSOR: BadgeStyle("yellow", Shape.DIAMOND),
        Severity.DIVERGENCE: BadgeStyle("red", Shape.TRIANGLE),
    },
    IncidentState: {
        IncidentState.OPEN: BadgeStyle("orange", Shape.TRIANGLE),
        IncidentState.ACTING: BadgeStyle("violet", Shape.DIAMOND),
        IncidentState.WATCHING: BadgeStyle("blue", Shape.RING),
        IncidentState.RESOLVED: BadgeStyle("teal", Shape.CHECK),
    },
    CommandState: {
        CommandState.PROPOSED: BadgeStyle("orange", Shape.DIAMOND),
        CommandState.PENDING: BadgeStyle("blue", Shape.RING),
        CommandState.DELIVERED: BadgeStyle("blue", Shape.DOT),
        CommandState.APPLIED: BadgeStyle("teal", Shape.CHECK),
        CommandState.REJECTED: BadgeStyle("gray", Shape.CROSS),
        CommandState.FAILED: BadgeStyle("red", Shape.CROSS),
        CommandState.EXPIRED: BadgeStyle("gray", Shape.BAR),
        CommandState.CANCELLED: BadgeStyle("gray", Shape.CROSS),
    },
    Connection: {
        Connection.LIVE: BadgeStyle("teal", Shape.DOT),
        Connection.CATCHING_UP: BadgeStyle("blue", Shape.RING),
        Connection.AWAY: BadgeStyle("orange", Shape.TRIANGLE),
        Connection.EXPIRED: BadgeStyle("red", Shape.CROSS),
    },
}


def badge_style(member: StrEnum) -> BadgeStyle:
    """Return how a state looks."""
    return STYLES[type(member)][member]


def mark(looks: BadgeStyle) -> Component:
    """Draw a mark. It says nothing that a word beside it does not say."""
    return html.Span(className=f"mark mark-{looks.shape} tone-{looks.tone}", **aria(hidden="true"))


def badge(looks: BadgeStyle, text: str, *, title: str = "") -> Component:
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
    """Badge of a run's state."""
    return _state_badge(state)


def mode_badge(mode: Mode) -> Component:
    """Badge of a mode."""
    return _state_badge(mode)


def severity_badge(severity: Severity) -> Component:
    """Badge of a severity."""
    return _state_badge(severity)


def incident_state_badge(state: IncidentState) -> Component:
    """Badge of an incident's state."""
    return _state_badge(state)


def command_state_badge(state: CommandState) -> Component:
    """Badge of a command's state."""
    return _state_badge(state)


def healthy_badge(*, healthy: bool, finite: bool = True) -> Component:
    """Badge of a snapshot: whether it is fit for a rollback."""
    if not finite:
        title = "has non-finite values: the job would reject it"
        return badge(BadgeStyle("red", Shape.CROSS), "not finite", title=title)
    if not healthy:
        title = "finite, but followed by an alert or by too few steps so far"
        return badge(BadgeStyle("yellow", Shape.DIAMOND), "unconfirmed", title=title)
    title = "finite, and no alert in the steps after it"
    return badge(BadgeStyle("teal", Shape.CHECK), "healthy", title=title)


def connection_badge(connection: Connection, *, since: datetime | None = None) -> Component:
    """Say how fresh the page is, to screen readers too when it changes.

    Args:
        connection: State of the page's connection.
        since: When the collector was last heard, if it is away.
    """
    text = _CONNECTION_WORDS[connection]
    title = None
    if connection is Connection.AWAY and since is not None:
        text, title = f"{text} since {clock(since)} UTC", f"since {moment(since)}"
    looks = badge_style(connection)
    return html.Span(
        [mark(looks), html.Span(text)],
        className=f"badge tone-{looks.tone} connection-{connection.value.replace('_', '-')}",
        title=title,
        role="status",
    )


_CONNECTION_WORDS: Final[Mapping[Connection, str]] = {
    Connection.LIVE: "live",
    Connection.CATCHING_UP: "connecting",
    Connection.AWAY: "collector not responding",
    Connection.EXPIRED: "session expired",
}


def _state_badge(state: StrEnum) -> Component:
    return badge(badge_style(state), label(state), title=phrase(state))


Content: TypeAlias = str | Component | list[str | Component]


def aria(**values: str) -> dict[str, Any]:
    """Name what screen readers are told: `aria(label="progress")` gives `aria-label`."""
    return {f"aria-{name}": value for name, value in values.items()}


def facts_line(facts: Sequence[str | Component]) -> Component:
    """Build a line of small facts, which wraps between them and never within."""
    return html.Div([html.Span(fact) for fact in facts], className="facts")


def facts_table(lines: Sequence[tuple[str, Content]]) -> Component:
    """Build a list of named facts, the names in a column of their own."""
    children: list[Component] = []
    for name, value in lines:
        children += [html.Dt(name), html.Dd(value)]
    return html.Dl(children, className="fact-table")


_TEXT: Final = re.compile(r"Time\(children='[^']*'")


def since(at: datetime, now: datetime) -> Component:
    """Say how long ago something was, with the moment itself when the pointer rests on it."""
    return _time(ago(at, now), at, "time-ago")


def until(at: datetime, now: datetime) -> Component:
    """Say how much time is left."""
    return _time(left(at, now) or "a moment", at, "time-left-word")


def _time(text: str, at: datetime, name: str) -> Component:
    return html.Time(text, dateTime=utc(at).isoformat(), title=moment(at), className=name)


def timeless(part: object) -> str:
    """Write a part of a page in full, but for what the page keeps true by itself."""
    return _TEXT.sub("Time(", repr(part))
