"""What all dialogs have in common: closed by a button, and told how it ended."""

from __future__ import annotations

from typing import Any

from dash import Dash, Input, Output, no_update
from dash.exceptions import PreventUpdate

from dashboard import ids
from dashboard.components.forms import FormIds
from dashboard.errors import DashboardError
from dashboard.handlers.deeds import Outcome
from dashboard.words.phrases import capital

_CLOSE_MILLISECONDS = 6000


def outcome_props(form: FormIds) -> tuple[Output, ...]:
    """Name what a deed sets: its status, whether the dialog is open, a notice."""
    return (
        Output(form.status, "children"),
        Output(form.dialog, "opened", allow_duplicate=True),
        Output(ids.NOTICES, "sendNotifications", allow_duplicate=True),
    )


def shown(outcome: Outcome) -> tuple[Any, ...]:
    """Close the dialog and tell, or stay and say what is wrong."""
    if not outcome.done:
        return outcome.status(), no_update, no_update
    return None, False, [_notice(outcome.told, "teal")]


def refused_opening(error: DashboardError) -> list[dict[str, Any]]:
    """Tell why a dialog does not open."""
    return [_notice(capital(error.message), "red")]


def _notice(text: str, color: str) -> dict[str, Any]:
    return {
        "action": "show",
        "message": text,
        "color": color,
        "autoClose": _CLOSE_MILLISECONDS,
    }


def on_dismiss(app: Dash, form: FormIds) -> None:
    """Close a dialog with nothing done."""

    @app.callback(
        Output(form.dialog, "opened", allow_duplicate=True),
        Input(form.dismiss, "n_clicks"),
        prevent_initial_call=True,
    )
    async def dismiss(clicks: int | None) -> bool:
        if not clicks:
            raise PreventUpdate
        return False
