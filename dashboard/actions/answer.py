"""Approve, reject or cancel a command."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from dash import ALL, Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component
from dash.exceptions import PreventUpdate

from dashboard import ids
from dashboard.actions.form import (
    ActionResult,
    FormIds,
    build_dialog,
    cannot_open,
    clicked_id,
    error_notice,
    error_text,
    form_body,
    on_submit,
    read_reason,
    renewal_inputs,
)
from dashboard.client import Collector, CollectorApi
from dashboard.components.command_card import preview_panel
from dashboard.errors import CollectorRefusedError, DashboardError, MissingError
from dashboard.text import capital, command_sentence
from stabilizer.clock import Clock
from stabilizer.protocol.commands import Command
from stabilizer.protocol.views import CommandPreview

FORM: Final = FormIds.named("answer")


class Verb(StrEnum):
    """What the user does with a command."""

    APPROVE = "approve"
    REJECT = "reject"
    CANCEL = "cancel"


_BUTTONS: Final = {ids.APPROVE: Verb.APPROVE, ids.REJECT: Verb.REJECT, ids.CANCEL: Verb.CANCEL}
_PAST: Final = {Verb.APPROVE: "Approved", Verb.REJECT: "Rejected", Verb.CANCEL: "Cancelled"}
_EFFECTS: Final[Mapping[Verb, str]] = {
    Verb.APPROVE: "The job receives the command with its next heartbeat and applies it at a step "
    "boundary.",
    Verb.REJECT: "The job never receives the command. The policy waits for its cooldown, then "
    "proposes again if still needed.",
    Verb.CANCEL: "The job has not received the command yet and will not receive it.",
}


def dialog() -> list[Component]:
    """Build the closed dialog."""
    return [dcc.Store(id=ids.ANSWER_TARGET), build_dialog(FORM, "Command")]


def answer_form(
    verb: Verb,
    command: Command,
    *,
    global_batch: int | None = None,
    preview: CommandPreview | None = None,
) -> Component:
    """Build the form.

    Args:
        verb: What is done with the command.
        command: The command.
        global_batch: Samples per step, if known.
        preview: What the command would do, if known.
    """
    sentence = command_sentence(command.parameters, global_batch=global_batch)
    return html.Div(
        [
            html.P(html.Strong(f"{capital(sentence)}."), className="form-intro"),
            html.P(_EFFECTS[verb], className="form-intro"),
            form_body(
                FORM,
                (),
                submit="Cancel command" if verb is Verb.CANCEL else capital(verb.value),
                tone="red.8" if verb is Verb.REJECT else None,
                preview=None if preview is None else preview_panel(preview),
            ),
        ]
    )


async def open_answer(client: CollectorApi, verb: Verb, command_id: str) -> Component:
    """Build the form for a command.

    Raises:
        DashboardError: The collector is not reachable, or has no such command.
    """
    command = await client.command(command_id)
    run = await client.run(command.run_id)
    preview = None
    if verb is Verb.APPROVE:
        try:
            preview = await client.preview_of(command_id)
        except (CollectorRefusedError, MissingError):
            preview = None  # the approval will be refused with the reason
    return answer_form(verb, command, global_batch=run.global_batch, preview=preview)


async def preview_answer(client: CollectorApi, command_id: str) -> Component:
    """Show what a stored command would do now, or why it can no longer be approved."""
    try:
        return preview_panel(await client.preview_of(command_id))
    except DashboardError as error:
        return error_notice(error_text(error))


async def answer_command(
    client: CollectorApi, verb: Verb, command_id: str, reason: str | None
) -> ActionResult:
    """Approve, reject or cancel a command."""
    call = {Verb.APPROVE: client.approve, Verb.REJECT: client.reject, Verb.CANCEL: client.cancel}
    try:
        command = await call[verb](command_id, read_reason(reason))
    except (ValueError, DashboardError) as error:
        return ActionResult.refused(error)
    sentence = command_sentence(command.parameters)
    return ActionResult(message=f"{_PAST[verb]}: {sentence}", done=True)


def register(app: Dash, collector: Collector, _clock: Clock) -> None:
    """Register the callbacks."""

    @app.callback(
        Output(FORM.dialog, "children"),
        Output(FORM.dialog, "title"),
        Output(FORM.dialog, "opened"),
        Output(ids.ANSWER_TARGET, "data"),
        Output(ids.NOTICES, "sendNotifications", allow_duplicate=True),
        *(Input({"type": kind, "id": ALL}, "n_clicks") for kind in _BUTTONS),
        prevent_initial_call=True,
    )
    async def open_dialog(*_clicks: list[int | None]) -> tuple[Any, ...]:
        button = clicked_id()
        verb, command_id = _BUTTONS[button["type"]], button["id"]
        try:
            form = await open_answer(collector.for_request(), verb, command_id)
        except DashboardError as error:
            return *[no_update] * 4, cannot_open(error)
        target = {"verb": verb.value, "id": command_id}
        return form, f"{capital(verb.value)} command", True, target, no_update

    @app.callback(
        output=Output(FORM.preview, "children"),
        inputs={"_updates": renewal_inputs()},
        state={
            "target": State(ids.ANSWER_TARGET, "data"),
            "is_open": State(FORM.dialog, "opened"),
        },
        prevent_initial_call=True,
    )
    async def renew_preview(
        _updates: Any,  # noqa: ANN401  only its change matters
        target: dict[str, str] | None,
        is_open: bool | None,
    ) -> Component:
        if not is_open or not target or target["verb"] != Verb.APPROVE:
            raise PreventUpdate
        return await preview_answer(collector.for_request(), target["id"])

    async def submit(reason: str | None, target: dict[str, str] | None) -> ActionResult:
        if not target:
            raise PreventUpdate
        verb = Verb(target["verb"])
        return await answer_command(collector.for_request(), verb, target["id"], reason)

    on_submit(app, FORM, {"target": State(ids.ANSWER_TARGET, "data")}, submit)
