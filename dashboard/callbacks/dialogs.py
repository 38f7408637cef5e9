"""What all dialogs have in common: opened, done or not, closed, and told how it ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from dash import Dash, Input, Output, State, no_update
from dash.development.base_component import Component
from dash.exceptions import PreventUpdate

from dashboard import ids
from dashboard.components.forms import FormIds
from dashboard.errors import DashboardError
from dashboard.handlers.deeds import Outcome
from dashboard.words.phrases import capital

_CLOSE_MILLISECONDS = 6000


def on_open(
    app: Dash, form: FormIds, button: str, build: Callable[[str], Awaitable[Component]]
) -> None:
    """Open a dialog of a run's page.

    Args:
        app: Where.
        form: Which.
        button: Id of what opens it.
        build: Builds the form for a run; a `DashboardError` is told instead.
    """

    @app.callback(
        Output(form.dialog, "children"),
        Output(form.dialog, "opened"),
        Output(ids.NOTICES, "sendNotifications", allow_duplicate=True),
        Input(button, "n_clicks"),
        State(ids.RUN_ID, "data"),
        prevent_initial_call=True,
    )
    async def open_dialog(clicks: int | None, run_id: str) -> tuple[Any, ...]:
        if not clicks:
            raise PreventUpdate
        try:
            return await build(run_id), True, no_update
        except DashboardError as error:
            return no_update, no_update, refused_opening(error)


def on_submit(
    app: Dash, form: FormIds, given: Mapping[str, Any], deed: Callable[..., Awaitable[Outcome]]
) -> None:
    """Do what a dialog is for, once for each click; it closes, or stays and says what is wrong.

    Args:
        app: Where.
        form: Which.
        given: What the deed is told beside the reason: name to `State`, or to a mapping of such.
        deed: Takes `reason` and what is given, by name.
    """

    @app.callback(
        output=[
            Output(form.status, "children"),
            Output(form.dialog, "opened", allow_duplicate=True),
            Output(ids.NOTICES, "sendNotifications", allow_duplicate=True),
        ],
        inputs={"clicks": Input(form.submit, "n_clicks")},
        state={"reason": State(form.reason, "value"), **given},
        running=[(Output(form.submit, "loading"), True, False)],
        prevent_initial_call=True,
    )
    async def submit(clicks: int | None, **told: Any) -> tuple[Any, ...]:  # noqa: ANN401  `given`
        if not clicks:
            raise PreventUpdate
        return _shown(await deed(**told))


def _shown(outcome: Outcome) -> tuple[Any, ...]:
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
