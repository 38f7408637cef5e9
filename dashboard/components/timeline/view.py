"""The log book on the page: step, what, why, who; more behind a click."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from dash import html
from dash.development.base_component import Component

from dashboard.components.badges import Look, Shape, mark
from dashboard.components.facts import facts_line, facts_table
from dashboard.components.timeline.entry import Entry, EntryKind
from dashboard.components.times import since
from dashboard.words.amounts import clock, count, day
from dashboard.words.phrases import actor_name

_SHAPES: Final = {
    EntryKind.SEEN: Shape.TRIANGLE,
    EntryKind.DECIDED: Shape.DIAMOND,
    EntryKind.ORDERED: Shape.RING,
    EntryKind.DONE: Shape.CHECK,
    EntryKind.REFUSED: Shape.CROSS,
    EntryKind.JOB: Shape.DOT,
    EntryKind.SETTING: Shape.SQUARE,
}


def timeline(
    entries: Sequence[Entry], *, now: datetime, limit: int = 50, id_prefix: str = "entry"
) -> Component:
    """Show the log book.

    Args:
        entries: Newest first, as `build_timeline` gives them.
        now: For how long ago it was.
        limit: Entries shown; how many more there are is said below.
        id_prefix: Begins the id of every entry. The ids keep what a reader has opened open when
            newer entries come in above.
    """
    if not entries:
        return html.P("Nothing has happened yet.", className="empty")
    shown = entries[:limit]
    children: list[Component] = []
    heading = ""
    for entry in shown:
        # What no clock has seen stands under the day of the entry above it.
        name = heading if entry.at is None else day(entry.at, now)
        if name != heading:
            children.append(html.Li(name, className="timeline-day"))
            heading = name
        children.append(_line(entry, now, id_prefix))
    hidden = len(entries) - len(shown)
    more = [html.P(f"{count(hidden)} earlier not shown", className="empty")] if hidden else []
    return html.Div([html.Ol(children, className="timeline"), *more])


def _line(entry: Entry, now: datetime, id_prefix: str) -> Component:
    return html.Li(
        [
            html.Div(_place(entry), className="entry-place"),
            mark(Look(entry.tone, _SHAPES[entry.kind])),
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
        id=f"{id_prefix}-{entry.key}",
        className=f"entry entry-{entry.kind}",
    )


def _place(entry: Entry) -> list[Component]:
    if entry.step is None:
        return []
    place: list[Component] = [html.Span(f"step {count(entry.step)}", className="entry-step")]
    if entry.attempt is not None:
        place.append(html.Span(f"attempt {entry.attempt}", className="entry-attempt"))
    return place


def _facts(entry: Entry, now: datetime) -> Iterator[Component]:
    facts: list[str | Component] = []
    if entry.actor:
        facts.append(actor_name(entry.actor))
    if entry.at is not None:
        facts.append(html.Span([f"{clock(entry.at)} UTC, ", since(entry.at, now)]))
    if facts:
        yield facts_line(facts)


def _more(entry: Entry) -> Iterator[Component]:
    if not entry.details and not entry.words:
        return
    children: list[Component] = [html.Summary("details")]
    if entry.details:
        children.append(facts_table(entry.details))
    if entry.words:
        children.append(html.Pre(entry.words, className="job-text"))
    yield html.Details(children)
