"""What all dialogs are made of: the window, the reason, places for preview and status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import dash_mantine_components as dmc
from dash import html
from dash.development.base_component import Component

from dashboard.components.badges import FAILURE, Look, Shape, mark
from dashboard.components.facts import aria
from dashboard.components.forms.ids import ComponentId, FormIds

MAX_REASON: Final = 2000
"""Characters that the collector takes."""
MAX_STEPS: Final = 10_000_000
REASON_MISSING: Final = "Write why: the reason stands in the audit log under your name"


def dialog(ids: FormIds, title: str, body: Component | None = None) -> Component:
    """Build the window of a form, closed. Escape closes it; the focus stays within.

    Args:
        ids: Of the form.
        title: What is done in it.
        body: One of the forms; None is filled in later.
    """
    window: Component = dmc.Modal(
        body,
        id=ids.dialog,
        title=title,
        opened=False,
        size="lg",
        padding="md",
        closeButtonProps={"aria-label": "close"},
    )
    return window


def form_body(
    ids: FormIds,
    fields: Sequence[Component],
    *,
    submit: str,
    tone: str | None = None,
    preview: Component | None = None,
) -> Component:
    """Put fields, preview, reason, status and buttons below each other.

    Args:
        ids: Of the form.
        fields: What is asked for beside the reason.
        submit: Word on the button that does it.
        tone: Colour of that button; None is the theme's.
        preview: What stands in its place at first.
    """
    return html.Div(
        [
            *fields,
            html.Div(preview, id=ids.preview, className="form-preview", **aria(live="polite")),
            _reason(ids.reason, is_first=not fields),
            html.Div(id=ids.status, className="form-status", role="status"),
            html.Div(
                [
                    dmc.Button("Back", id=ids.dismiss, variant="default", size="sm"),
                    dmc.Button(submit, id=ids.submit, color=tone, size="sm"),
                ],
                className="form-buttons",
            ),
        ],
        className="form",
    )


def _reason(component_id: ComponentId, *, is_first: bool) -> Component:
    focus = {"data-autofocus": True} if is_first else {}
    field: Component = dmc.Textarea(
        id=component_id,
        label="Reason",
        description="Stands in the audit log, with your name",
        required=True,
        value="",
        attributes={"input": {"maxLength": MAX_REASON}},
        autosize=True,
        minRows=2,
        maxRows=8,
        **focus,
    )
    return field


def whole_number(  # noqa: PLR0913  a field has these parts
    component_id: ComponentId,
    label: str,
    *,
    value: int | None,
    description: str,
    unit: str = "steps",
    least: int = 0,
    most: int = MAX_STEPS,
    placeholder: str = "",
) -> Component:
    """Build a field for a whole number with its unit and bounds."""
    field: Component = dmc.NumberInput(
        id=component_id,
        label=label,
        description=description,
        value="" if value is None else value,
        placeholder=placeholder,
        min=least,
        max=most,
        allowDecimal=False,
        allowNegative=False,
        thousandSeparator=",",
        suffix=f" {unit}",
    )
    return field


def error_notice(text: str) -> Component:
    """Say what went wrong, for the place of the status."""
    return html.Div([mark(FAILURE), html.Span(text)], className="notice notice-bad", role="alert")


def progress_notice(text: str) -> Component:
    """Say what is happening."""
    return html.Div([dmc.Loader(size="xs"), html.Span(text)], className="notice")


def done_notice(text: str) -> Component:
    """Say that it is done."""
    return html.Div([mark(Look("teal", Shape.CHECK)), html.Span(text)], className="notice")
