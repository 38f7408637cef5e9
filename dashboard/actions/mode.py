"""Change the mode of a run."""

from __future__ import annotations

from typing import Final

import dash_mantine_components as dmc
from dash import Dash, State, html
from dash.development.base_component import Component

from dashboard import ids
from dashboard.actions.form import (
    RUN_ID,
    ActionResult,
    FormIds,
    build_dialog,
    form_body,
    on_open,
    on_submit,
    read_reason,
)
from dashboard.client import Collector, CollectorApi
from dashboard.errors import DashboardError
from dashboard.text import capital, label, phrase
from stabilizer.clock import Clock
from stabilizer.protocol.decisions import Mode

FORM: Final = FormIds.named("mode")
MODE: Final = "mode-mode"


def dialog() -> list[Component]:
    """Build the closed dialog."""
    return [build_dialog(FORM, "Change mode")]


def mode_form(mode: Mode) -> Component:
    """Build the form, with the present mode selected."""
    options = [
        dmc.Radio(
            value=one.value,
            label=label(one) + (" (current)" if one is mode else ""),
            description=capital(phrase(one)),
        )
        for one in Mode
    ]
    choice = dmc.RadioGroup(
        html.Div(options, className="options"), id=MODE, value=mode.value, label="Mode"
    )
    note = html.P(
        "Observe also cancels commands of the policy that the job has not received yet.",
        className="form-intro",
    )
    return form_body(FORM, (choice, note), submit="Change mode")


async def change_mode(
    client: CollectorApi, run_id: str, mode: str | None, reason: str | None
) -> ActionResult:
    """Change the mode of a run."""
    try:
        why = read_reason(reason)
        if mode not in set(Mode):
            return ActionResult(message="Choose a mode", done=False)
        run = await client.set_mode(run_id, Mode(mode), why)
    except (ValueError, DashboardError) as error:
        return ActionResult.refused(error)
    return ActionResult(message=f"Mode changed to {run.mode.value}", done=True)


def register(app: Dash, collector: Collector, _clock: Clock) -> None:
    """Register the callbacks."""

    async def build(run_id: str) -> Component:
        return mode_form((await collector.for_request().run(run_id)).mode)

    async def submit(reason: str | None, mode: str | None, run_id: str) -> ActionResult:
        return await change_mode(collector.for_request(), run_id, mode, reason)

    on_open(app, FORM, ids.OPEN_MODE, build)
    on_submit(app, FORM, {"mode": State(MODE, "value"), "run_id": RUN_ID}, submit)
