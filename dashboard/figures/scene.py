"""The scene shared by all panels of a run: lineage, range of steps, and events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict

from dashboard.figures.figure import FigureDict, plain
from dashboard.figures.palette import GREY, SEVERITY_COLOURS, veil
from dashboard.text import actor_name, capital, command_sentence, phrase, reason_phrase
from stabilizer.protocol.commands import (
    SETTLED_STATES,
    Command,
    CommandKind,
    CommandState,
    RollbackParameters,
)
from stabilizer.protocol.decisions import Incident
from stabilizer.protocol.runs import Attempt, Branch, trace_lineage
from stabilizer.protocol.views import MarkerInfo


def describe_incident(incident: Incident) -> str:
    """Describe an incident: number, severity, state, steps, rules, decision and its reason."""
    if incident.resolved_step is None:
        steps = f"since step {incident.first_step:,}"
    else:
        steps = f"steps {incident.first_step:,} to {incident.resolved_step:,}"
    lines = [
        f"Incident {incident.number}: {incident.severity.value}, {incident.state.value}",
        steps,
        plain(", ".join(rule.replace("_", " ") for rule in incident.rules)),
        plain(f"{phrase(incident.decision)}: {phrase(incident.reason)}"),
        plain(incident.message),
    ]
    return "\n".join(line for line in lines if line)


def describe_command(command: Command) -> str:
    """Describe a command: effect, state, step, actor and reason."""
    lines = [
        capital(command_sentence(command.parameters)),
        _state(command),
        plain(f"by {actor_name(command.actor)}: {reason_phrase(command.reason)}"),
        plain(command.message),
    ]
    result = command.result
    if result is not None and result.reason is not None:
        lines.append(plain(f"{phrase(result.reason)}: {result.message}"))
    return "\n".join(line for line in lines if line)


def _state(command: Command) -> str:
    if command.result is not None and command.result.applied_step is not None:
        return f"{command.state.value} at step {command.result.applied_step:,}"
    if command.issued_step is None:
        return command.state.value
    if command.state is CommandState.PROPOSED:
        return f"proposed at step {command.issued_step:,}, approval needed"
    return f"{command.state.value}, sent at step {command.issued_step:,}"


def describe_marker(marker: MarkerInfo) -> str:
    """Describe a marker of the job, with its text."""
    name = marker.kind.value.replace("_", " ").replace("lr", "learning rate").capitalize()
    head = f"{name} at step {marker.step:,}, attempt {marker.attempt}"
    return "\n".join(line for line in (head, plain(marker.text)) if line)


EVENT_AXIS: Final = "y3"
_INCIDENT_ROW, _COMMAND_ROW, _MARKER_ROW = 0.955, 0.88, 0.025
_STACK: Final = 0.075
"""Vertical distance of commands at the same step."""

_SYMBOLS: Final = {
    CommandKind.ROLLBACK: "triangle-left",
    CommandKind.REDUCE_LR: "triangle-down",
    CommandKind.PAUSE: "square",
    CommandKind.RESUME: "triangle-right",
    CommandKind.STOP: "octagon",
    CommandKind.CHECKPOINT_NOW: "diamond",
}
_CROSSED: Final = SETTLED_STATES - {CommandState.APPLIED}
_DASHES: Final[Mapping[CommandState, str]] = {
    CommandState.APPLIED: "solid",
    CommandState.PENDING: "dash",
    CommandState.DELIVERED: "dash",
}
"""Line styles of commands; other states are dotted."""


class EventNote(TypedDict):
    """Tooltip text for a range of steps, both ends inclusive."""

    first: float
    last: float
    text: str
    """Lines separated by newlines; the first is the heading."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Events:
    """Incidents, commands and markers of a run."""

    incidents: Sequence[Incident] = ()
    commands: Sequence[Command] = ()
    markers: Sequence[MarkerInfo] = ()


def event_shapes(events: Events, x_end: float) -> list[FigureDict]:
    """Return bands of incidents and lines of commands, drawn below the data.

    Args:
        events: In any order.
        x_end: End of the axis. The band of an unresolved incident extends well beyond it, so that
            it still reaches the edge after samples were added.
    """
    bands = [_band(incident, x_end) for incident in events.incidents]
    return bands + [_line(step, command) for step, command in _placed(events.commands)]


def event_traces(events: Events) -> list[FigureDict]:
    """Return the marks of events; empty traces are omitted."""
    commands = _placed(events.commands)
    traces = [
        _incident_marks(events.incidents),
        _command_marks(commands, is_applied=True),
        _command_marks(commands, is_applied=False),
        _crosses(commands),
        _paths(commands),
        _targets(commands),
        _ticks(events.markers),
    ]
    return [trace for trace in traces if trace["x"]]


def event_notes(events: Events, x_end: float) -> list[EventNote]:
    """Return the tooltip texts of events."""
    commands = _placed(events.commands)
    notes: list[EventNote] = [
        {
            "first": incident.first_step,
            "last": _band_end(incident, x_end),
            "text": describe_incident(incident),
        }
        for incident in events.incidents
    ]
    notes += [_note(step, describe_command(command)) for step, command in commands]
    notes += [
        _note(target, f"Rolled back to here\nfrom step {step:,}")
        for step, target, _ in _rewinds(commands)
    ]
    notes += [_note(marker.step, describe_marker(marker)) for marker in events.markers]
    return notes


def _note(step: int, text: str) -> EventNote:
    return {"first": step, "last": step, "text": text}


def _band_end(incident: Incident, x_end: float) -> float:
    """Return the end of the band of an incident.

    A rollback may resolve the incident at a step before its start; the band still covers the steps
    of the incident.
    """
    seen = max(
        incident.first_step,
        incident.opened_step,
        *(decision.step for decision in incident.decisions),
    )
    if incident.resolved_step is not None:
        return max(seen, incident.resolved_step)
    return max(seen, x_end) + abs(x_end - incident.first_step) + 1


def _band(incident: Incident, x_end: float) -> FigureDict:
    colour = SEVERITY_COLOURS[incident.severity]
    return {
        "type": "rect",
        "layer": "below",
        "xref": "x",
        "yref": "paper",
        "x0": incident.first_step,
        "x1": _band_end(incident, x_end),
        "y0": 0,
        "y1": 1,
        "fillcolor": veil(colour, 0.12),
        "line": {"width": 1, "color": veil(colour, 0.3)},
    }


def _line(step: int, command: Command) -> FigureDict:
    is_faint = command.state in _CROSSED
    return {
        "type": "line",
        "layer": "below",
        "xref": "x",
        "yref": "paper",
        "x0": step,
        "x1": step,
        "y0": 0,
        "y1": 1,
        "line": {
            "width": 1,
            "color": veil(GREY, 0.4 if is_faint else 0.9),
            "dash": _DASHES.get(command.state, "dot"),
        },
    }


def _placed(commands: Iterable[Command]) -> list[tuple[int, Command]]:
    """Return commands with the step where they were applied, else sent; none without a step."""
    placed = []
    for command in commands:
        applied = command.result.applied_step if command.result is not None else None
        step = command.issued_step if applied is None else applied
        if step is not None:
            placed.append((step, command))
    return sorted(placed, key=lambda one: (one[0], one[1].issued_at))


def _incident_marks(incidents: Sequence[Incident]) -> FigureDict:
    """Return filled marks where incidents start, hollow ones where they are resolved."""
    ends = [(incident.first_step, "circle", incident) for incident in incidents]
    ends += [
        (incident.resolved_step, "circle-open", incident)
        for incident in incidents
        if incident.resolved_step is not None
    ]
    marker = {
        "symbol": [symbol for _, symbol, _ in ends],
        "color": [SEVERITY_COLOURS[incident.severity] for _, _, incident in ends],
        "size": 9,
    }
    return _marks("incidents", [(step, _INCIDENT_ROW) for step, _, _ in ends], marker)


def _command_marks(commands: Sequence[tuple[int, Command]], *, is_applied: bool) -> FigureDict:
    """Return marks of commands, filled if applied; those at the same step are stacked."""
    drawn = [one for one in commands if (one[1].state is CommandState.APPLIED) == is_applied]
    suffix = "" if is_applied else "-open"
    return _marks(
        "applied" if is_applied else "waiting",
        _spots(drawn, commands),
        {"symbol": [_SYMBOLS[one.kind] + suffix for _, one in drawn], "color": GREY, "size": 9},
    )


def _crosses(commands: Sequence[tuple[int, Command]]) -> FigureDict:
    crossed = [one for one in commands if one[1].state in _CROSSED]
    marker = {"symbol": "x-thin-open", "color": GREY, "size": 7}
    return _marks("crosses", _spots(crossed, commands), marker)


def _spots(
    drawn: Sequence[tuple[int, Command]], every: Sequence[tuple[int, Command]]
) -> list[tuple[int, float]]:
    """Return the positions of some commands, given all commands."""
    places: dict[str, int] = {}
    taken: Counter[int] = Counter()
    for step, command in every:
        places[command.id] = taken[step]
        taken[step] += 1
    return [(step, _COMMAND_ROW - _STACK * places[command.id]) for step, command in drawn]


def _rewinds(commands: Sequence[tuple[int, Command]]) -> list[tuple[int, int, Command]]:
    """Return applied rollbacks with their start and target step."""
    return [
        (step, command.parameters.target.step, command)
        for step, command in commands
        if isinstance(command.parameters, RollbackParameters)
        and command.state is CommandState.APPLIED
    ]


def _paths(commands: Sequence[tuple[int, Command]]) -> FigureDict:
    steps: list[int | None] = []
    for step, target, _ in _rewinds(commands):
        steps += [step, target, None]
    return {
        **_marks("paths", [], {}),
        "mode": "lines",
        "x": steps,
        "y": [None if step is None else _COMMAND_ROW for step in steps],
        "line": {"width": 1, "color": GREY, "dash": "dot"},
    }


def _targets(commands: Sequence[tuple[int, Command]]) -> FigureDict:
    spots = [(target, _COMMAND_ROW) for _, target, _ in _rewinds(commands)]
    return _marks("targets", spots, {"symbol": "arrow-left", "color": GREY, "size": 8})


def _ticks(markers: Sequence[MarkerInfo]) -> FigureDict:
    steps = sorted({marker.step for marker in markers})
    marker = {"symbol": "line-ns-open", "color": GREY, "size": 8, "line": {"width": 1.5}}
    return _marks("markers", [(step, _MARKER_ROW) for step in steps], marker)


def _marks(name: str, spots: Sequence[tuple[int, float]], marker: dict[str, Any]) -> FigureDict:
    """Return a trace of marks. Its uid becomes a CSS class."""
    return {
        "type": "scatter",
        "uid": name,
        "showlegend": False,
        "mode": "markers",
        "yaxis": EVENT_AXIS,
        "x": [step for step, _ in spots],
        "y": [height for _, height in spots],
        "marker": marker,
        "cliponaxis": False,
    }


ROOM: Final = 0.03
"""Free part of the axis to the right of the newest step; same value in `assets/charts.js`."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Built once for all panels of a page."""

    branches: tuple[Branch, ...]
    """Empty for a run that has not started."""
    x_range: tuple[float, float]
    is_zoomed: bool
    shapes: tuple[FigureDict, ...]
    traces: tuple[FigureDict, ...]
    notes: tuple[EventNote, ...]


def make_scene(
    attempts: Sequence[Attempt],
    step: int,
    *,
    events: Events | None = None,
    zoom: tuple[float, float] | None = None,
) -> Scene:
    """Build the scene.

    Args:
        attempts: All attempts of the run, in any order.
        step: Current step of the run.
        events: Events to draw in the panels.
        zoom: First and last step shown; None for the whole run.
    """
    happened = events or Events()
    x_range = zoom or _whole_range(attempts, step)
    return Scene(
        branches=trace_lineage(attempts),
        x_range=x_range,
        is_zoomed=zoom is not None,
        shapes=tuple(event_shapes(happened, x_range[1])),
        traces=tuple(event_traces(happened)),
        notes=tuple(event_notes(happened, x_range[1])),
    )


def _whole_range(attempts: Sequence[Attempt], step: int) -> tuple[float, float]:
    first = min((attempt.from_step for attempt in attempts), default=0)
    last = max((step, *(attempt.last_step for attempt in attempts)))
    return float(first), last + max(1.0, ROOM * (last - first))


def meta_of(scene: Scene) -> FigureDict:
    """Return the part of `layout.meta` that `assets/charts.js` needs in every figure."""
    return {
        "x_range": list(scene.x_range),
        "is_zoomed": scene.is_zoomed,
        "notes": list(scene.notes),
    }
