"""Dialogs: opened, looked ahead in, and done."""

from __future__ import annotations

from typing import Any

from dash import ALL, Dash, Input, Output, State, ctx, no_update
from dash.development.base_component import Component
from dash.exceptions import PreventUpdate

from dashboard import ids
from dashboard.callbacks.dialogs import on_dismiss, on_open, on_submit, refused_opening
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
_ORDER_FIELDS = {
    "kind": State(ORDER.kind, "value"),
    "snapshot": State(ORDER.snapshot, "value"),
    "skip_steps": State(ORDER.skip_steps, "value"),
    "with_cut": State(ORDER.with_cut, "checked"),
    "factor": State(ORDER.factor, "value"),
    "hold_steps": State(ORDER.hold_steps, "value"),
    "ramp_steps": State(ORDER.ramp_steps, "value"),
}
_SILENCE_FIELDS = {
    "rule": State(SILENCE.rule, "value"),
    "end": State(SILENCE.end, "value"),
    "minutes": State(SILENCE.minutes, "value"),
    "until_step": State(SILENCE.until_step, "value"),
}
_RUN_ID = State(ids.RUN_ID, "data")
_ATTEMPT = State(ids.ORDER_ATTEMPT, "data")


def _renewing() -> list[Input]:
    """What an open dialog looks ahead anew with: the run goes on while a person thinks.

    As the cards of proposed commands do. Not with every step: nobody reads as fast.
    """
    return [Input(ids.LIVE_DECISIONS, "data"), Input(ids.CLOCK, "n_intervals")]


def _is_renewal() -> bool:
    """Whether nothing has changed in the dialog itself."""
    triggered = set(ctx.triggered_prop_ids.values())
    return bool(triggered) and triggered <= {ids.LIVE_DECISIONS, ids.CLOCK}


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
        output=Output(WORD.preview, "children"),
        inputs={"_news": _renewing()},
        state={
            "target": State(ids.WORD_TARGET, "data"),
            "is_open": State(WORD.dialog, "opened"),
        },
        prevent_initial_call=True,
    )
    async def renew_preview(
        _news: Any,  # noqa: ANN401  JSON, looked at for its change only
        target: dict[str, str] | None,
        is_open: bool | None,
    ) -> Component:
        if not is_open or not target or target["verb"] != Verb.APPROVE:
            raise PreventUpdate
        return await deeds.preview_word(collector.asked_now(), target["id"])

    async def give_word(reason: str | None, target: dict[str, str] | None) -> deeds.Outcome:
        if not target:
            raise PreventUpdate
        verb = Verb(target["verb"])
        return await deeds.give_word(collector.asked_now(), verb, target["id"], reason)

    on_submit(app, WORD, {"target": State(ids.WORD_TARGET, "data")}, give_word)


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
        output=Output(ORDER.preview, "children"),
        inputs={
            "_news": _renewing(),
            "fields": {
                name: Input(state.component_id, state.component_property)
                for name, state in _ORDER_FIELDS.items()
            },
        },
        state={
            "run_id": _RUN_ID,
            "attempt": _ATTEMPT,
            "is_open": State(ORDER.dialog, "opened"),
        },
    )
    async def preview(
        _news: Any,  # noqa: ANN401  JSON, looked at for its change only
        fields: dict[str, Any],
        run_id: str,
        attempt: int | None,
        is_open: bool | None,
    ) -> Component:
        if not is_open and _is_renewal():
            raise PreventUpdate
        read = deeds.OrderFields(**fields)
        return await deeds.preview_order(collector.asked_now(), run_id, attempt, read)

    async def give_order(
        reason: str | None, run_id: str, attempt: int | None, fields: dict[str, Any]
    ) -> deeds.Outcome:
        read = deeds.OrderFields(**fields)
        return await deeds.give_order(collector.asked_now(), run_id, attempt, read, reason)

    given = {"run_id": _RUN_ID, "attempt": _ATTEMPT, "fields": _ORDER_FIELDS}
    on_submit(app, ORDER, given, give_order)


def _register_mode(app: Dash, collector: Collector) -> None:
    async def open_mode(run_id: str) -> Component:
        return await deeds.open_mode(collector.asked_now(), run_id)

    async def change_mode(reason: str | None, mode: str | None, run_id: str) -> deeds.Outcome:
        return await deeds.change_mode(collector.asked_now(), run_id, mode, reason)

    on_open(app, MODE, ids.OPEN_MODE, open_mode)
    on_submit(app, MODE, {"mode": State(MODE.mode, "value"), "run_id": _RUN_ID}, change_mode)


def _register_silence(app: Dash, collector: Collector, clock: Clock) -> None:
    async def open_silence(run_id: str) -> Component:
        return await deeds.open_silence(collector.asked_now(), run_id)

    async def silence(reason: str | None, fields: dict[str, Any], run_id: str) -> deeds.Outcome:
        read = deeds.SilenceFields(**fields)
        client = collector.asked_now()
        return await deeds.silence_rule(client, run_id, read, reason, clock.now())

    on_open(app, SILENCE, ids.OPEN_SILENCE, open_silence)
    on_submit(app, SILENCE, {"fields": _SILENCE_FIELDS, "run_id": _RUN_ID}, silence)
