"""The switch over all runs, silences and the audit log."""

from __future__ import annotations

from typing import Any

from dash import ALL, Dash, Input, Output, State, ctx, no_update
from dash.development.base_component import Component
from dash.exceptions import PreventUpdate

from dashboard import ids
from dashboard.callbacks.dialogs import on_dismiss, on_submit
from dashboard.client import Collector
from dashboard.components.control import armed_badge
from dashboard.components.deeds import SWITCH, UNSILENCE, ending_form
from dashboard.components.forms import arming_form
from dashboard.components.problem import problem_of
from dashboard.errors import DashboardError
from dashboard.handlers import deeds
from dashboard.handlers.control import PARTS, view_control
from stabilizer.clock import Clock


def register(app: Dash, collector: Collector, clock: Clock) -> None:
    """Register what shows and turns the switch, here and in the head of every page."""
    _register_views(app, collector, clock)
    _register_switch(app, collector)
    _register_unsilence(app, collector)
    for form in (SWITCH, UNSILENCE):
        on_dismiss(app, form)


def _register_views(app: Dash, collector: Collector, clock: Clock) -> None:
    @app.callback(
        Output(ids.CONTROL_PROBLEM, "children"),
        *(Output(part, "children") for part in PARTS),
        Output(ids.SWITCH_FACTS, "data"),
        Input(ids.LIVE_CONTROL, "data"),
        Input(ids.LIVE_DECISIONS, "data"),
        Input(ids.CLOCK, "n_intervals"),
        State(ids.SWITCH_FACTS, "data"),
    )
    async def show_control(
        _news: Any,  # noqa: ANN401  JSON, looked at for its change only
        _decisions: Any,  # noqa: ANN401  likewise
        _clock: int | None,
        facts: dict[str, Any] | None,
    ) -> tuple[Any, ...]:
        try:
            view = await view_control(collector.asked_now(), facts, clock.now())
        except DashboardError as error:
            if facts:
                raise PreventUpdate from error
            return problem_of(error, "/control"), *[no_update] * (len(PARTS) + 1)
        return None, *view.parts, view.facts

    @app.callback(
        Output(ids.ARMED_BADGE, "children"),
        Input(ids.LIVE_CONTROL, "data"),
        Input(ids.CLOCK, "n_intervals"),
    )
    async def show_armed(
        _news: Any,  # noqa: ANN401  JSON, looked at for its change only
        _clock: int | None,
    ) -> Component | None:
        try:
            return armed_badge(await collector.asked_now().control())
        except DashboardError as error:
            raise PreventUpdate from error


def _register_switch(app: Dash, collector: Collector) -> None:
    @app.callback(
        Output(SWITCH.dialog, "children"),
        Output(SWITCH.dialog, "opened"),
        Output(ids.SWITCH_TARGET, "data"),
        Input(ids.OPEN_SWITCH, "n_clicks"),
        State(ids.SWITCH_FACTS, "data"),
        prevent_initial_call=True,
    )
    async def open_switch(
        clicks: int | None, facts: dict[str, Any] | None
    ) -> tuple[Component, bool, dict[str, Any]]:
        if not clicks or not facts:
            raise PreventUpdate
        disarmed = facts["disarmed"]
        return arming_form(SWITCH, disarmed=disarmed), True, {"disarmed": not disarmed}

    async def turn_switch(reason: str | None, target: dict[str, Any] | None) -> deeds.Outcome:
        # As the dialog says, whatever has become of the switch since it was opened: of two people
        # who disarm at once, the second must not arm.
        if not target:
            raise PreventUpdate
        return await deeds.turn_switch(collector.asked_now(), target["disarmed"], reason)

    on_submit(app, SWITCH, {"target": State(ids.SWITCH_TARGET, "data")}, turn_switch)


def _register_unsilence(app: Dash, collector: Collector) -> None:
    @app.callback(
        Output(UNSILENCE.dialog, "children"),
        Output(UNSILENCE.dialog, "opened"),
        Output(ids.UNSILENCE_TARGET, "data"),
        Input({"type": ids.END_SILENCE, "id": ALL}, "n_clicks"),
        prevent_initial_call=True,
    )
    async def open_unsilence(_clicks: list[int | None]) -> tuple[Component, bool, str]:
        if not ctx.triggered_id or not ctx.triggered[0]["value"]:
            raise PreventUpdate
        return ending_form(), True, ctx.triggered_id["id"]

    async def end_silence(reason: str | None, silence_id: str) -> deeds.Outcome:
        return await deeds.end_silence(collector.asked_now(), silence_id, reason)

    on_submit(app, UNSILENCE, {"silence_id": State(ids.UNSILENCE_TARGET, "data")}, end_silence)
