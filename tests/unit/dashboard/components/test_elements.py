from enum import StrEnum

import pytest

from dashboard.components.elements import (
    STYLES,
    Connection,
    badge_style,
    command_state_badge,
    connection_badge,
    healthy_badge,
    incident_state_badge,
    mode_badge,
    run_state_badge,
    severity_badge,
)
from dashboard.text import label
from stabilizer.protocol.commands import CommandState
from stabilizer.protocol.decisions import IncidentState, Mode, Severity
from stabilizer.protocol.runs import RunState

BUILDERS = {
    RunState: run_state_badge,
    Mode: mode_badge,
    Severity: severity_badge,
    IncidentState: incident_state_badge,
    CommandState: command_state_badge,
}


def every_state() -> list[StrEnum]:
    return [member for kind in BUILDERS for member in kind]


@pytest.mark.parametrize("state", every_state(), ids=lambda s: f"{type(s).__name__}.{s.name}")
def test_badge_shows_its_state_with_a_tooltip(text_of, state):
    built = BUILDERS[type(state)](state)
    assert text_of(built) == label(state)
    assert len(built.title) > 3


@pytest.mark.parametrize("kind", list(STYLES), ids=lambda kind: kind.__name__)
def test_every_state_has_a_style_and_shapes_differ(kind):
    assert {type(member) for member in STYLES[kind]} == {kind}
    assert len(STYLES[kind]) == len(kind)
    assert len({badge_style(state).shape for state in kind}) > 1


@pytest.mark.parametrize("connection", list(Connection))
def test_connection_badge_is_announced_by_screen_readers(text_of, connection):
    built = connection_badge(connection)
    assert built.role == "status"
    assert text_of(built)


def test_badge_of_a_lost_collector_shows_since_when(text_of, minute):
    built = connection_badge(Connection.AWAY, since=minute(3))
    assert text_of(built) == "collector not responding since 14:03 UTC"
    assert "2025-05-30 14:03:00 UTC" in built.title
    assert text_of(connection_badge(Connection.AWAY)) == "collector not responding"


def test_non_finite_snapshot_is_never_healthy(text_of):
    assert text_of(healthy_badge(healthy=True, finite=False)) == "not finite"
    assert text_of(healthy_badge(healthy=True)) == "healthy"
    assert text_of(healthy_badge(healthy=False)) == "unconfirmed"
