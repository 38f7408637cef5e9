"""Send a command to a run. The form shows only the fields of the chosen kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, dcc, html, no_update
from dash.development.base_component import Component
from dash.exceptions import PreventUpdate
from pydantic import TypeAdapter, ValidationError

from dashboard import ids
from dashboard.actions.form import (
    RUN_ID,
    ActionResult,
    FormIds,
    build_dialog,
    cannot_open,
    error_notice,
    error_text,
    form_body,
    is_renewal,
    on_submit,
    read_reason,
    renewal_inputs,
    validated,
    whole_number,
)
from dashboard.client import Collector, CollectorApi
from dashboard.components.command_card import preview_panel
from dashboard.components.elements import healthy_badge
from dashboard.errors import DashboardError
from dashboard.formatting import count
from dashboard.text import capital, command_sentence, phrase
from stabilizer.clock import Clock
from stabilizer.protocol.commands import (
    Command,
    CommandKind,
    CommandState,
    ReduceLrParameters,
    RollbackParameters,
)
from stabilizer.protocol.queries import CommandCreate, CommandRequest, RollbackRequest
from stabilizer.protocol.views import CommandPreviewRequest, SnapshotState

FORM: Final = FormIds.named("send")
KIND: Final = "send-kind"
SNAPSHOT: Final = "send-snapshot"
SKIP_STEPS: Final = "send-skip-steps"
WITH_CUT: Final = "send-with-cut"
FACTOR: Final = "send-factor"
HOLD_STEPS: Final = "send-hold-steps"
RAMP_STEPS: Final = "send-ramp-steps"

_REQUEST: Final[TypeAdapter[CommandRequest]] = TypeAdapter(CommandRequest)
_IN_FLIGHT: Final = "The same command is already in flight: wait for the job's reply, or cancel it"
_EFFECTS: Final[Mapping[CommandKind, str]] = {
    CommandKind.ROLLBACK: "Rewind to a snapshot and continue after the harmful data",
    CommandKind.REDUCE_LR: "Multiply the rate of every group, on top of the schedule",
    CommandKind.PAUSE: "Hold at a step boundary until resume or stop",
    CommandKind.RESUME: "Continue after a pause",
    CommandKind.STOP: "End the training cleanly; it cannot be resumed from here",
    CommandKind.CHECKPOINT_NOW: "Write a checkpoint at a step boundary, then continue",
}
_FIELDS: Final = {
    "kind": State(KIND, "value"),
    "snapshot": State(SNAPSHOT, "value"),
    "skip_steps": State(SKIP_STEPS, "value"),
    "with_cut": State(WITH_CUT, "checked"),
    "factor": State(FACTOR, "value"),
    "hold_steps": State(HOLD_STEPS, "value"),
    "ramp_steps": State(RAMP_STEPS, "value"),
}


def dialog() -> list[Component]:
    """Build the closed dialog."""
    return [dcc.Store(id=ids.SEND_ATTEMPT), build_dialog(FORM, "Send command")]


def command_form(
    snapshots: Sequence[SnapshotState], kind: CommandKind = CommandKind.ROLLBACK
) -> Component:
    """Build the form.

    Args:
        snapshots: Of the job; the newest healthy one is preselected.
        kind: Preselected.
    """
    kinds = dmc.RadioGroup(
        html.Div([_kind(one) for one in CommandKind], className="options options-wide"),
        id=KIND,
        value=kind.value,
        label="Command",
    )
    fields = (
        kinds,
        html.Div(_rollback_fields(snapshots), className="for-rollback"),
        html.Div(_cut_fields(), className="for-cut fields-beside"),
    )
    return html.Div(form_body(FORM, fields, submit="Send command"), className="command-form")


def _kind(kind: CommandKind) -> Component:
    radio: Component = dmc.Radio(
        value=kind.value, label=capital(phrase(kind)), description=_EFFECTS[kind]
    )
    return radio


def _rollback_fields(snapshots: Sequence[SnapshotState]) -> list[Component]:
    ordered = sorted(
        snapshots, key=lambda one: (one.snapshot.step, one.snapshot.attempt), reverse=True
    )
    healthy = (one.snapshot.id for one in ordered if one.healthy and one.snapshot.finite)
    choices = [_snapshot(one) for one in ordered]
    empty = html.P("The job holds no snapshots: it cannot roll back.", className="empty")
    return [
        dmc.RadioGroup(
            html.Div(choices or empty, className="options snapshots"),
            id=SNAPSHOT,
            value=next(healthy, None),
            label="Snapshot",
        ),
        whole_number(
            SKIP_STEPS,
            "Skip",
            value=0,
            description="Data skipped from the snapshot onwards",
            unit="steps of data",
        ),
        dmc.Checkbox(id=WITH_CUT, label="Reduce the learning rate as well", className="with-cut"),
    ]


def _snapshot(state: SnapshotState) -> Component:
    snapshot = state.snapshot
    label = html.Span(
        [
            html.Strong(f"step {count(snapshot.step)}"),
            html.Span(f"attempt {snapshot.attempt}"),
            healthy_badge(healthy=state.healthy, finite=snapshot.finite),
            html.Code(snapshot.id),
        ],
        className="snapshot",
    )
    radio: Component = dmc.Radio(value=snapshot.id, label=label, disabled=not snapshot.finite)
    return radio


def _cut_fields() -> list[Component]:
    factor = dmc.NumberInput(
        id=FACTOR,
        label="Factor",
        description="Above 0, at most 1",
        value=0.5,
        min=0.0001,
        max=1,
        step=0.05,
        decimalScale=6,
        allowNegative=False,
    )
    return [
        factor,
        whole_number(
            HOLD_STEPS,
            "Hold for",
            value=500,
            description="Empty: until changed",
            placeholder="until changed",
        ),
        whole_number(RAMP_STEPS, "Then ramp back over", value=500, description="0: at once"),
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandFields:
    """Values of the form; numbers may be empty text."""

    kind: str | None
    snapshot: str | None = None
    skip_steps: Any = None
    with_cut: bool | None = None
    factor: Any = None
    hold_steps: Any = None
    ramp_steps: Any = None

    def request(self) -> CommandRequest:
        """Read the command.

        Raises:
            ValueError: A field is not valid; the message names it.
        """
        if self.kind == CommandKind.REDUCE_LR:
            return self._cut()
        if self.kind == CommandKind.ROLLBACK:
            return self._rollback()
        try:
            return _REQUEST.validate_python({"kind": self.kind})
        except ValidationError as error:
            raise ValueError("choose a command") from error

    def _rollback(self) -> RollbackRequest:
        if not self.snapshot:
            raise ValueError("choose a snapshot")
        fields = {
            "snapshot_id": self.snapshot,
            "skip_steps": _or_none(self.skip_steps) or 0,
            "reduce_lr": self._cut() if self.with_cut else None,
        }
        return validated(RollbackRequest, fields)

    def _cut(self) -> ReduceLrParameters:
        fields = {
            "factor": _or_none(self.factor),
            "hold_steps": _or_none(self.hold_steps),
            "ramp_steps": _or_none(self.ramp_steps) or 0,
        }
        return validated(ReduceLrParameters, fields)


def _or_none(value: Any) -> Any:  # noqa: ANN401  what a number field holds
    return None if value in ("", None) else value


async def open_send(client: CollectorApi, run_id: str) -> tuple[Component, int]:
    """Build the form; return it with the attempt that it shows.

    Raises:
        DashboardError: The collector is not reachable, or has no such run.
    """
    run = await client.run(run_id)
    return command_form(await client.snapshots(run_id)), run.attempt


async def preview_command(
    client: CollectorApi, run_id: str, attempt: int | None, fields: CommandFields
) -> Component:
    """Show what a command would do, or why it cannot be sent."""
    try:
        request = CommandPreviewRequest(parameters=fields.request(), attempt=attempt)
        return preview_panel(await client.preview(run_id, request))
    except (ValueError, DashboardError) as error:
        return error_notice(error_text(error))


async def send_command(
    client: CollectorApi,
    run_id: str,
    attempt: int | None,
    fields: CommandFields,
    reason: str | None,
) -> ActionResult:
    """Send a command, unless the same one is in flight, for example after a double click."""
    try:
        create = CommandCreate(
            parameters=fields.request(), reason=read_reason(reason), attempt=attempt
        )
        if any(_is_same(create, one) for one in await client.commands(run_id)):
            return ActionResult(message=_IN_FLIGHT, done=False)
        command = await client.send_command(run_id, create)
    except (ValueError, DashboardError) as error:
        return ActionResult.refused(error)
    return ActionResult(message=f"Sent: {command_sentence(command.parameters)}", done=True)


def _is_same(asked: CommandCreate, given: Command) -> bool:
    """Tell whether an unsettled command does the same to the same attempt."""
    if given.is_settled or given.state is CommandState.PROPOSED:
        return False
    if asked.attempt not in (None, given.attempt):
        return False
    what, known = asked.parameters, given.parameters
    if isinstance(what, RollbackRequest) and isinstance(known, RollbackParameters):
        return (what.snapshot_id, what.skip_steps, what.reduce_lr) == (
            known.target.snapshot_id,
            known.skip_steps,
            known.reduce_lr,
        )
    return what == known


def register(app: Dash, collector: Collector, _clock: Clock) -> None:
    """Register the callbacks."""
    attempt_state = State(ids.SEND_ATTEMPT, "data")

    @app.callback(
        Output(FORM.dialog, "children"),
        Output(FORM.dialog, "opened"),
        Output(ids.SEND_ATTEMPT, "data"),
        Output(ids.NOTICES, "sendNotifications", allow_duplicate=True),
        Input(ids.OPEN_SEND, "n_clicks"),
        RUN_ID,
        prevent_initial_call=True,
    )
    async def open_dialog(clicks: int | None, run_id: str) -> tuple[Any, ...]:
        if not clicks:
            raise PreventUpdate
        try:
            form, attempt = await open_send(collector.for_request(), run_id)
        except DashboardError as error:
            return *[no_update] * 3, cannot_open(error)
        return form, True, attempt, no_update

    @app.callback(
        output=Output(FORM.preview, "children"),
        inputs={
            "_updates": renewal_inputs(),
            "fields": {
                name: Input(state.component_id, state.component_property)
                for name, state in _FIELDS.items()
            },
        },
        state={
            "run_id": RUN_ID,
            "attempt": attempt_state,
            "is_open": State(FORM.dialog, "opened"),
        },
    )
    async def preview(
        _updates: Any,  # noqa: ANN401  only its change matters
        fields: dict[str, Any],
        run_id: str,
        attempt: int | None,
        is_open: bool | None,
    ) -> Component:
        if not is_open and is_renewal():
            raise PreventUpdate
        client = collector.for_request()
        return await preview_command(client, run_id, attempt, CommandFields(**fields))

    async def submit(
        reason: str | None, run_id: str, attempt: int | None, fields: dict[str, Any]
    ) -> ActionResult:
        client = collector.for_request()
        return await send_command(client, run_id, attempt, CommandFields(**fields), reason)

    given = {"run_id": RUN_ID, "attempt": attempt_state, "fields": _FIELDS}
    on_submit(app, FORM, given, submit)
