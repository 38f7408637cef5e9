"""End a silence early."""

from __future__ import annotations

from typing import Final

from dash import ALL, Dash, Input, Output, State, dcc
from dash.development.base_component import Component

from dashboard import ids
from dashboard.actions.form import (
    ActionResult,
    FormIds,
    build_dialog,
    clicked_id,
    form_body,
    on_submit,
    read_reason,
)
from dashboard.client import Collector, CollectorApi
from dashboard.errors import DashboardError
from stabilizer.clock import Clock

FORM: Final = FormIds.named("end-silence")


def dialog() -> list[Component]:
    """Build the closed dialog."""
    return [dcc.Store(id=ids.END_SILENCE_TARGET), build_dialog(FORM, "End silence")]


def end_form() -> Component:
    """Build the form."""
    return form_body(FORM, (), submit="End silence")


async def end_silence(client: CollectorApi, silence_id: str, reason: str | None) -> ActionResult:
    """End a silence early."""
    try:
        await client.end_silence(silence_id, read_reason(reason))
    except (ValueError, DashboardError) as error:
        return ActionResult.refused(error)
    return ActionResult(message="Silence ended", done=True)


def register(app: Dash, collector: Collector, _clock: Clock) -> None:
    """Register the callbacks."""

    @app.callback(
        Output(FORM.dialog, "children"),
        Output(FORM.dialog, "opened"),
        Output(ids.END_SILENCE_TARGET, "data"),
        Input({"type": ids.END_SILENCE, "id": ALL}, "n_clicks"),
        prevent_initial_call=True,
    )
    async def open_dialog(_clicks: list[int | None]) -> tuple[Component, bool, str]:
        silence_id = clicked_id()["id"]
        return end_form(), True, silence_id

    async def submit(reason: str | None, silence_id: str) -> ActionResult:
        return await end_silence(collector.for_request(), silence_id, reason)

    on_submit(app, FORM, {"silence_id": State(ids.END_SILENCE_TARGET, "data")}, submit)
