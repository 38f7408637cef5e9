"""Small facts beside each other or below each other, without a table's weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from dash import html
from dash.development.base_component import Component

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
