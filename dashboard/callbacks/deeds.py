"""Dialogs: opened, looked ahead in, and done."""

from __future__ import annotations

from typing import Any

from dash import ALL, Dash, Input, Output, State, ctx, no_update
from dash.development.base_component import Component
from dash.exceptions import PreventUpdate

from dashboard import ids
from dashboard.callbacks.dialogs import on_dismiss, outcome_props, refused_opening, shown
from dashboard.client import Collector
from dashboard.components.deeds import MODE, ORDER, SILENCE, WORD
from dashboard.components.forms import Verb
from dashboard.errors import DashboardError
from dashboard.handlers import deeds
from stabilizer.clock import Clock

_VERBS = {ids.APPROVE: Verb.APPROVE, ids.REJECT: Verb.REJECT, ids.CANCEL: Verb.CANCEL}
_TITLES = {
    Verb.APPROVE: "Approve a command",
    Verb.REJECT: "Reject a command",
    Verb.CANCEL: "Take a command back",
}
_ORDER_STATES = (
    State(ORDER.kind, "value"),
    State(ORDER.snapshot, "value"),
    State(ORDER.skip_steps, "value"),
    State(ORDER.with_cut, "checked"),
    State(ORDER.factor, "value"),
    State(ORDER.hold_steps, "value"),
    State(ORDER.ramp_steps, "value"),
)


def register(app: Dash, collector: Collector, clock: Clock) -> None:
    """Register the dialogs of a run's page."""
    _register_word(app, collector)
    _register_order(app, collector)
    _register_mode(app, collector)
    _register_silence(app, collector, clock)
    for form in (WORD, ORDER, MODE, SILENCE):
        on_dismiss(app, form)


def _register_word(app: Dash, collector: Collector) -> None:
    @app.callback(
        Output(WORD.dialog, "children"),
        Output(WORD.dialog, "title"),
        Output(WORD.dialog, "opened"),
        Output(ids.WORD_TARGET, "data"),
        Output(ids.NOTICES, "sendNotifications", allow_duplicate=True),
        *(Input({"type": kind, "id": ALL}, "n_clicks") for kind in _VERBS),
        prevent_initial_call=True,
    )
    async def open_word(*_clicks: list[int | None]) -> tuple[Any, ...]:
        # The buttons come and go with the cards: only a click that has a count is one.
        if not ctx.triggered_id or not ctx.triggered[0]["value"]:
            raise PreventUpdate
        verb, command_id = _VERBS[ctx.triggered_id["type"]], ctx.triggered_id["id"]
        try:
            form = await deeds.open_word(collector.asked_now(), verb, command_id)
        except DashboardError as error:
            return *[no_update] * 4, refused_opening(error)
        target = {"verb": verb.value, "id": command_id}
        return form, _TITLES[verb], True, target, no_update

    @app.callback(
        *outcome_props(WORD),
        Input(WORD.submit, "n_clicks"),
        State(WORD.reason, "value"),
        State(ids.WORD_TARGET, "data"),
        running=[(Output(WORD.submit, "loading"), True, False)],
        prevent_initial_call=True,
    )
    async def give_word(
        clicks: int | None, reason: str | None, target: dict[str, str] | None
    ) -> tuple[Any, ...]:
        if not clicks or not target:
            raise PreventUpdate
        verb = Verb(target["verb"])
        outcome = await deeds.give_word(collector.asked_now(), verb, target["id"], reason)
        return shown(outcome)


def _register_order(app: Dash, collector: Collector) -> None:
    @app.callback(
        Output(ORDER.dialog, "children"),
        Output(ORDER.dialog, "opened"),
        Output(ids.ORDER_ATTEMPT, "data"),
        Output(ids.NOTICES, "sendNotifications", allow_duplicate=True),
        Input(ids.OPEN_ORDER, "n_clicks"),
        State(ids.RUN_ID, "data"),
        prevent_initial_call=True,
    )
    async def open_order(clicks: int | None, run_id: str) -> tuple[Any, ...]:
        if not clicks:
            raise PreventUpdate
        try:
            form, attempt = await deeds.open_order(collector.asked_now(), run_id)
        except DashboardError as error:
            return *[no_update] * 3, refused_opening(error)
        return form, True, attempt, no_update

    @app.callback(
        Output(ORDER.preview, "children"),
        *(Input(state.component_id, state.component_property) for state in _ORDER_STATES),
        State(ids.RUN_ID, "data"),
        State(ids.ORDER_ATTEMPT, "data"),
    )
    async def preview(*given: Any) -> Component:  # noqa: ANN401  as they stand in the form
        *fields, run_id, attempt = given
        read = deeds.OrderFields(**dict(zip(_ORDER_FIELDS, fields, strict=True)))
        return await deeds.preview_order(collector.asked_now(), run_id, attempt, read)

    @app.callback(
        *outcome_props(ORDER),
        Input(ORDER.submit, "n_clicks"),
        State(ORDER.reason, "value"),
        State(ids.RUN_ID, "data"),
        State(ids.ORDER_ATTEMPT, "data"),
        *_ORDER_STATES,
        running=[(Output(ORDER.submit, "loading"), True, False)],
        prevent_initial_call=True,
    )
    async def give_order(
        clicks: int | None,
        reason: str | None,
        run_id: str,
        attempt: int | None,
        *fields: Any,  # noqa: ANN401
    ) -> tuple[Any, ...]:
        if not clicks:
            raise PreventUpdate
        read = deeds.OrderFields(**dict(zip(_ORDER_FIELDS, fields, strict=True)))
        return shown(await deeds.give_order(collector.asked_now(), run_id, attempt, read, reason))


_ORDER_FIELDS = (
    "kind",
    "snapshot",
    "skip_steps",
    "with_cut",
    "factor",
    "hold_steps",
    "ramp_steps",
)


def _register_mode(app: Dash, collector: Collector) -> None:
    @app.callback(
        Output(MODE.dialog, "children"),
        Output(MODE.dialog, "opened"),
        Output(ids.NOTICES, "sendNotifications", allow_duplicate=True),
        Input(ids.OPEN_MODE, "n_clicks"),
        State(ids.RUN_ID, "data"),
        prevent_initial_call=True,
    )
    async def open_mode(clicks: int | None, run_id: str) -> tuple[Any, ...]:
        if not clicks:
            raise PreventUpdate
        try:
            return await deeds.open_mode(collector.asked_now(), run_id), True, no_update
        except DashboardError as error:
            return no_update, no_update, refused_opening(error)

    @app.callback(
        *outcome_props(MODE),
        Input(MODE.submit, "n_clicks"),
        State(MODE.reason, "value"),
        State(MODE.mode, "value"),
        State(ids.RUN_ID, "data"),
        running=[(Output(MODE.submit, "loading"), True, False)],
        prevent_initial_call=True,
    )
    async def change_mode(
        clicks: int | None, reason: str | None, mode: str | None, run_id: str
    ) -> tuple[Any, ...]:
        if not clicks:
            raise PreventUpdate
        return shown(await deeds.change_mode(collector.asked_now(), run_id, mode, reason))


def _register_silence(app: Dash, collector: Collector, clock: Clock) -> None:
    @app.callback(
        Output(SILENCE.dialog, "children"),
        Output(SILENCE.dialog, "opened"),
        Output(ids.NOTICES, "sendNotifications", allow_duplicate=True),
        Input(ids.OPEN_SILENCE, "n_clicks"),
        State(ids.RUN_ID, "data"),
        prevent_initial_call=True,
    )
    async def open_silence(clicks: int | None, run_id: str) -> tuple[Any, ...]:
        if not clicks:
            raise PreventUpdate
        try:
            return await deeds.open_silence(collector.asked_now(), run_id), True, no_update
        except DashboardError as error:
            return no_update, no_update, refused_opening(error)

    @app.callback(
        output=list(outcome_props(SILENCE)),
        inputs={"clicks": Input(SILENCE.submit, "n_clicks")},
        state={
            "reason": State(SILENCE.reason, "value"),
            "fields": {
                "rule": State(SILENCE.rule, "value"),
                "end": State(SILENCE.end, "value"),
                "minutes": State(SILENCE.minutes, "value"),
                "until_step": State(SILENCE.until_step, "value"),
            },
            "run_id": State(ids.RUN_ID, "data"),
        },
        running=[(Output(SILENCE.submit, "loading"), True, False)],
        prevent_initial_call=True,
    )
    async def silence(
        clicks: int | None, reason: str | None, fields: dict[str, Any], run_id: str
    ) -> tuple[Any, ...]:
        if not clicks:
            raise PreventUpdate
        read = deeds.SilenceFields(**fields)
        client = collector.asked_now()
        return shown(await deeds.silence_rule(client, run_id, read, reason, clock.now()))
