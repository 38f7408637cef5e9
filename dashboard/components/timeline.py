"""The timeline of a run, merged from all sources."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import accumulate
from typing import Final

from dash import html
from dash.development.base_component import Component

from dashboard.components.elements import BadgeStyle, Shape, facts_line, facts_table, mark, since
from dashboard.components.timeline_entries import AuditIndex, EntryKind, TimelineEntry
from dashboard.components.timeline_sources import (
    alert_entries,
    attempt_entries,
    command_entries,
    decision_entries,
    incident_entries,
    marker_entries,
    setting_entries,
    unlisted_decisions,
)
from dashboard.formatting import clock, count, day, utc
from dashboard.text import actor_name
from stabilizer.protocol.commands import Command
from stabilizer.protocol.decisions import Alert, Incident
from stabilizer.protocol.queries import AuditEntry
from stabilizer.protocol.runs import Attempt
from stabilizer.protocol.views import MarkerInfo


def build_timeline(  # noqa: PLR0913  the history of a run has these parts
    *,
    audit: Sequence[AuditEntry] = (),
    incidents: Sequence[Incident] = (),
    alerts: Sequence[Alert] = (),
    commands: Sequence[Command] = (),
    markers: Sequence[MarkerInfo] = (),
    attempts: Sequence[Attempt] = (),
    global_batch: int | None = None,
) -> list[TimelineEntry]:
    """Merge the history of a run, newest first, without duplicates.

    A decision is in its incident and in the audit log; a command is in its own row, in the log, in
    the attempt that it started and in the marker of the learning rate that it changed. Each is one
    entry here. Any source may be incomplete or empty. With `global_batch`, the samples per step,
    skips are shown in samples and verified.
    """
    log = AuditIndex(audit)
    by_id = {command.id: command for command in commands}
    entries = [
        *alert_entries(alerts),
        *decision_entries(incidents, by_id, log, global_batch),
        *unlisted_decisions(log),
        *incident_entries(incidents, log),
        *command_entries(commands, incidents, log, global_batch),
        *attempt_entries(attempts, by_id, log),
        *marker_entries(markers, commands),
        *setting_entries(log),  # last: it takes the remaining entries
    ]
    return newest_first(entries, attempts)


class StepClock:
    """Estimates when an attempt was at a step, from entries with both.

    Times within an attempt never decrease: a late entry gets the latest time before it.
    """

    def __init__(self, entries: Iterable[TimelineEntry], attempts: Sequence[Attempt]) -> None:
        known: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
        for attempt in attempts:
            start = utc(attempt.started_at).timestamp()
            known[attempt.number].append((attempt.from_step, start))
        for entry in entries:
            time = _time(entry)
            if entry.kind not in _PUNCTUAL or entry.attempt is None or entry.step is None:
                continue
            if time is not None:
                known[entry.attempt].append((entry.step, time))
        self._steps: dict[int, list[int]] = {}
        self._times: dict[int, list[float]] = {}
        for number, places in known.items():
            places.sort()
            self._steps[number] = [step for step, _ in places]
            self._times[number] = list(accumulate((time for _, time in places), max))

    def time_of(self, attempt: int, step: int) -> float:
        """Return the estimated time in seconds since the epoch.

        Interpolated between known steps; beyond them, the time of the nearest.
        """
        steps, times = self._steps.get(attempt), self._times.get(attempt)
        if not steps or not times:
            return self._end_before(attempt)
        after = bisect_right(steps, step)
        if after == 0 or steps[after - 1] == step or after == len(steps):
            return times[max(after - 1, 0)]
        way = (step - steps[after - 1]) / (steps[after] - steps[after - 1])
        return times[after - 1] + way * (times[after] - times[after - 1])

    def _end_before(self, attempt: int) -> float:
        earlier = [times[-1] for number, times in self._times.items() if number < attempt]
        return max(earlier, default=0.0)


def newest_first(
    entries: Sequence[TimelineEntry], attempts: Sequence[Attempt]
) -> list[TimelineEntry]:
    """Sort entries. At the same time, an alert comes below the decision on it."""
    clock = StepClock(entries, attempts)

    def place(numbered: tuple[int, TimelineEntry]) -> tuple[float, float, float, int, int]:
        position, entry = numbered
        time = _time(entry)
        if time is None:
            time = clock.time_of(entry.attempt or 0, entry.step or 0)
        return time, *_position(entry), _RANKS[entry.kind], position

    return [entry for _, entry in sorted(enumerate(entries), key=place, reverse=True)]


_RANKS = {
    EntryKind.JOB: 0,
    EntryKind.SEEN: 1,
    EntryKind.DONE: 2,
    EntryKind.REFUSED: 2,
    EntryKind.DECIDED: 3,
    EntryKind.ORDERED: 4,
    EntryKind.SETTING: 5,
}


_PUNCTUAL = frozenset({EntryKind.DECIDED, EntryKind.ORDERED, EntryKind.JOB})
"""Kinds recorded at the step that they name; results of a job may arrive much later."""


def _position(entry: TimelineEntry) -> tuple[float, float]:
    """Order entries of the same time; those without a step come last."""
    attempt = math.inf if entry.attempt is None else entry.attempt
    return attempt, math.inf if entry.step is None else entry.step


def _time(entry: TimelineEntry) -> float | None:
    return None if entry.at is None else utc(entry.at).timestamp()


_SHAPES: Final = {
    EntryKind.SEEN: Shape.TRIANGLE,
    EntryKind.DECIDED: Shape.DIAMOND,
    EntryKind.ORDERED: Shape.RING,
    EntryKind.DONE: Shape.CHECK,
    EntryKind.REFUSED: Shape.CROSS,
    EntryKind.JOB: Shape.DOT,
    EntryKind.SETTING: Shape.SQUARE,
}


def timeline(entries: Sequence[TimelineEntry], *, now: datetime, limit: int = 50) -> Component:
    """Show the timeline.

    Args:
        entries: Newest first, from `build_timeline`.
        now: Current time.
        limit: Entries shown; the number of further ones is shown below.
    """
    if not entries:
        return html.P("No events yet.", className="empty")
    shown = entries[:limit]
    children: list[Component] = []
    heading = ""
    for entry in shown:
        # An entry without a time belongs to the day of the entry above it.
        name = heading if entry.at is None else day(entry.at, now)
        if name != heading:
            children.append(html.Li(name, className="timeline-day"))
            heading = name
        children.append(_line(entry, now))
    hidden = len(entries) - len(shown)
    more = [html.P(f"{count(hidden)} earlier not shown", className="empty")] if hidden else []
    return html.Div([html.Ol(children, className="timeline"), *more])


def _line(entry: TimelineEntry, now: datetime) -> Component:
    is_mismatch = entry.kind is EntryKind.DONE and entry.tone == "red"
    shape = Shape.CROSS if is_mismatch else _SHAPES[entry.kind]
    return html.Li(
        [
            html.Div(_place(entry), className="entry-place"),
            mark(BadgeStyle(entry.tone, shape)),
            html.Div(
                [
                    html.Div(entry.title, className="entry-title"),
                    *([html.Div(entry.text, className="entry-text")] if entry.text else []),
                    *_facts(entry, now),
                    *_more(entry),
                ],
                className="entry-body",
            ),
        ],
        id=f"entry-{entry.key}",  # keeps opened details open when newer entries arrive
        className=f"entry entry-{entry.kind}",
    )


def _place(entry: TimelineEntry) -> list[Component]:
    if entry.step is None:
        return []
    place: list[Component] = [html.Span(f"step {count(entry.step)}", className="entry-step")]
    if entry.attempt is not None:
        place.append(html.Span(f"attempt {entry.attempt}", className="entry-attempt"))
    return place


def _facts(entry: TimelineEntry, now: datetime) -> Iterator[Component]:
    facts: list[str | Component] = []
    if entry.actor:
        facts.append(actor_name(entry.actor))
    if entry.at is not None:
        facts.append(html.Span([f"{clock(entry.at)} UTC, ", since(entry.at, now)]))
    if facts:
        yield facts_line(facts)


def _more(entry: TimelineEntry) -> Iterator[Component]:
    if not entry.details and not entry.job_message:
        return
    children: list[Component] = [html.Summary("details")]
    if entry.details:
        children.append(facts_table(entry.details))
    if entry.job_message:
        children.append(html.Pre(entry.job_message, className="job-text"))
    yield html.Details(children)
