"""Badges, facts and times. A badge shows its state by text, shape and colour."""

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
    """Shape of a mark, drawn by the style sheet."""

    DOT = "dot"
    RING = "ring"
    TRIANGLE = "triangle"
    SQUARE = "square"
    DIAMOND = "diamond"
    CHECK = "check"
    CROSS = "cross"
    BAR = "bar"


class BadgeStyle(NamedTuple):
    """Colour of the theme, by name, and shape of a mark."""

    tone: str
    shape: Shape


WARNING: Final = BadgeStyle("yellow", Shape.TRIANGLE)
FAILURE: Final = BadgeStyle("red", Shape.CROSS)


class Connection(StrEnum):
    """State of a page's connection to the collector."""

    LIVE = "live"
    CATCHING_UP = "catching_up"
    """Connecting or reconnecting."""
    AWAY = "away"
    """The collector does not respond."""
    EXPIRED = "expired"
    """The user must sign in again."""


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
    """Return the style of a state."""
    return STYLES[type(member)][member]


def mark(style: BadgeStyle) -> Component:
    """Draw a mark. It is hidden from screen readers: text beside it says the same."""
    return html.Span(className=f"mark mark-{style.shape} tone-{style.tone}", **aria(hidden="true"))


def badge(style: BadgeStyle, text: str, *, title: str = "") -> Component:
    """Build a badge.

    Args:
        style: Colour and shape of its mark.
        text: Label.
        title: Tooltip.
    """
    return html.Span(
        [mark(style), html.Span(text)],
        className=f"badge tone-{style.tone}",
        title=title or None,
    )


def run_state_badge(state: RunState) -> Component:
    """Build the badge of a run's state."""
    return _state_badge(state)


def mode_badge(mode: Mode) -> Component:
    """Build the badge of a mode."""
    return _state_badge(mode)


def severity_badge(severity: Severity) -> Component:
    """Build the badge of a severity."""
    return _state_badge(severity)


def incident_state_badge(state: IncidentState) -> Component:
    """Build the badge of an incident's state."""
    return _state_badge(state)


def command_state_badge(state: CommandState) -> Component:
    """Build the badge of a command's state."""
    return _state_badge(state)


def healthy_badge(*, healthy: bool, finite: bool = True) -> Component:
    """Build the badge of a snapshot: whether it is fit for a rollback."""
    if not finite:
        title = "has non-finite values: the job would reject it"
        return badge(BadgeStyle("red", Shape.CROSS), "not finite", title=title)
    if not healthy:
        title = "finite, but followed by an alert or by too few steps so far"
        return badge(BadgeStyle("yellow", Shape.DIAMOND), "unconfirmed", title=title)
    title = "finite, and no alert in the steps after it"
    return badge(BadgeStyle("teal", Shape.CHECK), "healthy", title=title)


def connection_badge(connection: Connection, *, since: datetime | None = None) -> Component:
    """Build the badge of the connection, announced by screen readers when it changes.

    Args:
        connection: State of the connection.
        since: Since when the collector does not respond, if known.
    """
    text = _CONNECTION_TEXTS[connection]
    title = None
    if connection is Connection.AWAY and since is not None:
        text, title = f"{text} since {clock(since)} UTC", f"since {moment(since)}"
    style = badge_style(connection)
    return html.Span(
        [mark(style), html.Span(text)],
        className=f"badge tone-{style.tone} connection-{connection.value.replace('_', '-')}",
        title=title,
        role="status",
    )


_CONNECTION_TEXTS: Final[Mapping[Connection, str]] = {
    Connection.LIVE: "live",
    Connection.CATCHING_UP: "connecting",
    Connection.AWAY: "collector not responding",
    Connection.EXPIRED: "session expired",
}


def _state_badge(state: StrEnum) -> Component:
    return badge(badge_style(state), label(state), title=phrase(state))


Content: TypeAlias = str | Component | list[str | Component]


def aria(**values: str) -> dict[str, Any]:
    """Return ARIA attributes: `aria(label="progress")` gives `aria-label`."""
    return {f"aria-{name}": value for name, value in values.items()}


def facts_line(facts: Sequence[str | Component]) -> Component:
    """Build a line of short facts that wraps only between them."""
    return html.Div([html.Span(fact) for fact in facts], className="facts")


def facts_table(lines: Sequence[tuple[str, Content]]) -> Component:
    """Build a table of names and values."""
    children: list[Component] = []
    for name, value in lines:
        children += [html.Dt(name), html.Dd(value)]
    return html.Dl(children, className="fact-table")


_TEXT: Final = re.compile(r"Time\(children='[^']*'")


def since(at: datetime, now: datetime) -> Component:
    """Show an age, with the full time as tooltip; assets/times.js keeps it current."""
    return _time(ago(at, now), at, "time-ago")


def until(at: datetime, now: datetime) -> Component:
    """Show the time left, likewise."""
    return _time(left(at, now) or "a moment", at, "time-left-text")


def _time(text: str, at: datetime, name: str) -> Component:
    return html.Time(text, dateTime=utc(at).isoformat(), title=moment(at), className=name)


def timeless(part: object) -> str:
    """Return the representation of a component without ages, which assets/times.js updates."""
    return _TEXT.sub("Time(", repr(part))
