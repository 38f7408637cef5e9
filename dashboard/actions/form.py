"""What all actions share: the dialog with its reason, and how it opens, submits and closes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

import dash_mantine_components as dmc
from dash import Dash, Input, Output, State, ctx, html, no_update
from dash.development.base_component import Component
from dash.exceptions import PreventUpdate
from pydantic import BaseModel, ValidationError

from dashboard import ids
from dashboard.components.elements import FAILURE, aria, mark
from dashboard.errors import DashboardError
from dashboard.text import capital
from stabilizer.protocol.queries import Note

MAX_REASON: Final = 2000
"""Characters that the collector accepts."""
MAX_STEPS: Final = 10_000_000
REASON_MISSING: Final = "Enter a reason: it is recorded in the audit log under your name"
RUN_ID: Final = State(ids.RUN_ID, "data")
_CLOSE_MILLISECONDS: Final = 6000
_ADVICE: Final[Mapping[str, str]] = {
    "past_attempt": ". Close this dialog and open it again",
    "unknown_snapshot": ". Close this dialog and open it again",
}

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, kw_only=True, slots=True)
class FormIds:
    """Ids of the parts that every dialog has."""

    dialog: str
    """The window; its `opened` opens and closes it."""
    reason: str
    """`value`: required, not blank."""
    submit: str
    dismiss: str
    """Button that closes the window and does nothing."""
    preview: str
    """`children`: what the action would do, as `preview_panel` shows it."""
    status: str
    """`children`: the error of the last attempt."""

    @classmethod
    def named(cls, name: str) -> Self:
        """Make the ids of one dialog: `<name>-dialog`, `<name>-reason`, ..."""
        return cls(**{part: f"{name}-{part}" for part in cls.__slots__})


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionResult:
    """What became of an action."""

    message: str
    """What was done, or why it was not."""
    done: bool

    @classmethod
    def refused(cls, error: ValueError | DashboardError) -> Self:
        """Make the result of an action that failed."""
        return cls(message=error_text(error), done=False)


# The dialog.


def build_dialog(form: FormIds, title: str) -> Component:
    """Build an empty, closed dialog. Escape closes it; the focus stays within."""
    window: Component = dmc.Modal(
        None,
        id=form.dialog,
        title=title,
        opened=False,
        size="lg",
        padding="md",
        closeButtonProps={"aria-label": "close"},
    )
    return window


def form_body(
    form: FormIds,
    fields: Sequence[Component],
    *,
    submit: str,
    tone: str | None = None,
    preview: Component | None = None,
) -> Component:
    """Stack fields, preview, reason, status and buttons.

    Args:
        form: Ids of the dialog.
        fields: Inputs beside the reason.
        submit: Label of the submit button.
        tone: Colour of that button; None is the theme's.
        preview: Initial preview.
    """
    return html.Div(
        [
            *fields,
            html.Div(preview, id=form.preview, className="form-preview", **aria(live="polite")),
            _reason(form.reason, is_first=not fields),
            html.Div(id=form.status, className="form-status", role="status"),
            html.Div(
                [
                    dmc.Button("Back", id=form.dismiss, variant="default", size="sm"),
                    dmc.Button(submit, id=form.submit, color=tone, size="sm"),
                ],
                className="form-buttons",
            ),
        ],
        className="form",
    )


def _reason(component_id: str, *, is_first: bool) -> Component:
    focus = {"data-autofocus": True} if is_first else {}
    field: Component = dmc.Textarea(
        id=component_id,
        label="Reason",
        description="Recorded in the audit log under your name",
        required=True,
        value="",
        attributes={"input": {"maxLength": MAX_REASON}},
        autosize=True,
        minRows=2,
        maxRows=8,
        **focus,
    )
    return field


def whole_number(  # noqa: PLR0913  a field has these parts
    component_id: str,
    label: str,
    *,
    value: int | None,
    description: str,
    unit: str = "steps",
    least: int = 0,
    most: int = MAX_STEPS,
    placeholder: str = "",
) -> Component:
    """Build a field for a whole number with its unit and bounds."""
    field: Component = dmc.NumberInput(
        id=component_id,
        label=label,
        description=description,
        value="" if value is None else value,
        placeholder=placeholder,
        min=least,
        max=most,
        allowDecimal=False,
        allowNegative=False,
        thousandSeparator=",",
        suffix=f" {unit}",
    )
    return field


def error_notice(text: str) -> Component:
    """Build the message of a failed attempt."""
    return html.Div([mark(FAILURE), html.Span(text)], className="notice notice-bad", role="alert")


# Reading what was entered.


def read_reason(reason: str | None) -> str:
    """Read the reason.

    Raises:
        ValueError: It is missing, or the audit log does not accept it.
    """
    if not reason or not reason.strip():
        raise ValueError(REASON_MISSING)
    return validated(Note, {"reason": reason}).reason


def validated(model: type[Model], fields: Mapping[str, Any]) -> Model:
    """Validate fields.

    Raises:
        ValueError: The message names the first bad field and what is allowed.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise ValueError(_first_mistake(error)) from error


def error_text(error: ValueError | DashboardError) -> str:
    """Write an error as a sentence for the dialog."""
    if isinstance(error, ValidationError):
        return capital(_first_mistake(error))
    if isinstance(error, DashboardError):
        return capital(error.message + _ADVICE.get(error.code, ""))
    return capital(str(error))


def _first_mistake(error: ValidationError) -> str:
    found = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in found["loc"]).replace("_", " ")
    return f"{name}: {found['msg'].removeprefix('Value error, ').lower()}"


# The callbacks.


def clicked_id() -> dict[str, str]:
    """Return the id of the clicked button of a pattern-matching input.

    Raises:
        PreventUpdate: No click: buttons without a count have just been added or removed.
    """
    if not ctx.triggered_id or not ctx.triggered[0]["value"]:
        raise PreventUpdate
    found: dict[str, str] = ctx.triggered_id
    return found


def on_open(
    app: Dash, form: FormIds, button: str, build: Callable[[str], Awaitable[Component]]
) -> None:
    """Open a dialog of a run's page.

    Args:
        app: The Dash app.
        form: Ids of the dialog.
        button: Id of the button that opens it.
        build: Builds the form for a run id; a `DashboardError` becomes a notification.
    """

    @app.callback(
        Output(form.dialog, "children"),
        Output(form.dialog, "opened"),
        Output(ids.NOTICES, "sendNotifications", allow_duplicate=True),
        Input(button, "n_clicks"),
        RUN_ID,
        prevent_initial_call=True,
    )
    async def open_dialog(clicks: int | None, run_id: str) -> tuple[Any, ...]:
        if not clicks:
            raise PreventUpdate
        try:
            return await build(run_id), True, no_update
        except DashboardError as error:
            return no_update, no_update, cannot_open(error)


def on_submit(
    app: Dash,
    form: FormIds,
    given: Mapping[str, Any],
    action: Callable[..., Awaitable[ActionResult]],
) -> None:
    """Run an action once per click; the dialog closes, or stays open with the error. Wire "Back".

    Args:
        app: The Dash app.
        form: Ids of the dialog.
        given: Further arguments of the action: name to `State`, or to a mapping of such.
        action: Takes `reason` and what is given, by name.
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
    async def submit(clicks: int | None, **fields: Any) -> tuple[Any, ...]:  # noqa: ANN401  `given`
        if not clicks:
            raise PreventUpdate
        result = await action(**fields)
        if not result.done:
            return error_notice(result.message), no_update, no_update
        return None, False, [_notification(result.message, "teal")]

    @app.callback(
        Output(form.dialog, "opened", allow_duplicate=True),
        Input(form.dismiss, "n_clicks"),
        prevent_initial_call=True,
    )
    async def dismiss(clicks: int | None) -> bool:
        if not clicks:
            raise PreventUpdate
        return False


def cannot_open(error: DashboardError) -> list[dict[str, Any]]:
    """Build the notification of a dialog that does not open."""
    return [_notification(capital(error.message), "red")]


def _notification(text: str, color: str) -> dict[str, Any]:
    return {"action": "show", "message": text, "color": color, "autoClose": _CLOSE_MILLISECONDS}


def renewal_inputs() -> list[Input]:
    """Inputs that refresh the preview of an open dialog.

    The run advances while the dialog is open. Not at every step, which would be too fast to read.
    """
    return [Input(ids.LIVE_DECISIONS, "data"), Input(ids.CLOCK, "n_intervals")]


def is_renewal() -> bool:
    """Tell whether the callback runs for `renewal_inputs` alone, not for a changed field."""
    triggered = set(ctx.triggered_prop_ids.values())
    return bool(triggered) and triggered <= {ids.LIVE_DECISIONS, ids.CLOCK}
