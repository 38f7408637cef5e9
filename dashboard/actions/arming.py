"""Disarm the policy on all runs, or arm it again."""

from __future__ import annotations

from typing import Any, Final

from dash import Dash, Input, Output, State, dcc, html
from dash.development.base_component import Component
from dash.exceptions import PreventUpdate

from dashboard import ids
from dashboard.actions.form import (
    ActionResult,
    FormIds,
    build_dialog,
    form_body,
    on_submit,
    read_reason,
)
from dashboard.client import Collector, CollectorApi
from dashboard.errors import DashboardError
from stabilizer.clock import Clock
from stabilizer.protocol.queries import ControlUpdate

FORM: Final = FormIds.named("arming")


def dialog() -> list[Component]:
    """Build the closed dialog."""
    return [dcc.Store(id=ids.ARMING_TARGET), build_dialog(FORM, "Arm or disarm all runs")]


def arming_form(*, disarmed: bool) -> Component:
    """Build the form.

    Args:
        disarmed: Current state; the form offers the other one.
    """
    effect = (
        "The policy may act again on every run, within each run's mode."
        if disarmed
        else "The policy stops acting on all runs, and its commands that no job has received yet "
        "are cancelled. Rules and incidents stay active; you can still send commands."
    )
    body = form_body(
        FORM, (), submit="Arm" if disarmed else "Disarm all", tone=None if disarmed else "red.8"
    )
    return html.Div([html.P(effect, className="form-intro"), body])


async def set_armed(client: CollectorApi, disarmed: bool, reason: str | None) -> ActionResult:
    """Disarm the policy on all runs, or arm it again."""
    try:
        await client.set_control(ControlUpdate(disarmed=disarmed, reason=read_reason(reason)))
    except (ValueError, DashboardError) as error:
        return ActionResult.refused(error)
    return ActionResult(message="All runs disarmed" if disarmed else "All runs armed", done=True)


def register(app: Dash, collector: Collector, _clock: Clock) -> None:
    """Register the callbacks."""

    @app.callback(
        Output(FORM.dialog, "children"),
        Output(FORM.dialog, "opened"),
        Output(ids.ARMING_TARGET, "data"),
        Input(ids.OPEN_ARMING, "n_clicks"),
        State(ids.CONTROL_FACTS, "data"),
        prevent_initial_call=True,
    )
    async def open_dialog(
        clicks: int | None, facts: dict[str, Any] | None
    ) -> tuple[Component, bool, dict[str, Any]]:
        if not clicks or not facts:
            raise PreventUpdate
        disarmed = facts["disarmed"]
        return arming_form(disarmed=disarmed), True, {"disarmed": not disarmed}

    async def submit(reason: str | None, target: dict[str, Any] | None) -> ActionResult:
        # The dialog decides, whatever the state has become since: if two users disarm at once,
        # the second must not arm.
        if not target:
            raise PreventUpdate
        return await set_armed(collector.for_request(), target["disarmed"], reason)

    on_submit(app, FORM, {"target": State(ids.ARMING_TARGET, "data")}, submit)
