"""A command as a card: preview, progress, read-back and buttons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

import dash_mantine_components as dmc
from dash import html
from dash.development.base_component import Component

from dashboard import ids
from dashboard.components.command_progress import (
    ReadBackCheck,
    ReadBackContext,
    ReadBackVerdict,
    Stage,
    StageState,
    stages,
    verify,
)
from dashboard.components.elements import (
    WARNING,
    BadgeStyle,
    Content,
    Shape,
    aria,
    command_state_badge,
    facts_line,
    facts_table,
    healthy_badge,
    mark,
    since,
    until,
)
from dashboard.formatting import (
    ARROW,
    change,
    clock,
    count,
    counted,
    duration,
    left,
    moment,
    number,
)
from dashboard.text import (
    actor_name,
    capital,
    command_sentence,
    command_title,
    is_user,
    phrase,
    reason_phrase,
)
from stabilizer.protocol.commands import (
    Command,
    CommandParameters,
    CommandState,
    ReduceLrParameters,
    RollbackParameters,
)
from stabilizer.protocol.queries import AuditAction, AuditEntry
from stabilizer.protocol.views import CommandPreview


def preview_panel(preview: CommandPreview) -> Component:
    """Show what the command would do if the job applied it now."""
    return html.Section(
        [
            html.H5("Effect if applied now"),
            facts_table(list(_preview_lines(preview))),
            *([_rates_table(preview)] if _changes_rate(preview) and preview.lr else []),
            *([_warnings(preview)] if preview.warnings else []),
        ],
        className="preview",
    )


def _preview_lines(preview: CommandPreview) -> Iterator[tuple[str, Content]]:
    parameters = preview.parameters
    yield "now at", f"attempt {preview.attempt}, step {count(preview.step)}"
    if isinstance(parameters, RollbackParameters):
        target = parameters.target
        place = (
            f"step {count(target.step)}, attempt {target.attempt}, snapshot {target.snapshot_id}"
        )
        health = [] if preview.target_healthy is None else [_health(preview.target_healthy)]
        yield "rolls back to", [place, *health]
        yield "repeats", _lost(preview)
        yield "skips", _skipped(preview)
    elif isinstance(parameters, ReduceLrParameters):
        yield "cost", "none: no steps repeated, no data skipped"
    else:
        yield "action", command_sentence(parameters)
    if _changes_rate(preview):
        scale = change(preview.lr_scale_before, preview.lr_scale_after)
        yield "lr_scale", f"{scale}, {_held(parameters)}"


def _health(healthy: bool) -> Component:
    return html.Span([" ", healthy_badge(healthy=healthy)])


def _lost(preview: CommandPreview) -> str:
    text = counted(preview.steps_lost, "step")
    if preview.seconds_lost is not None:
        return f"{text}, about {duration(preview.seconds_lost)}"
    return f"{text}, duration unknown"


def _skipped(preview: CommandPreview) -> str:
    start = preview.skip_from_sample
    if preview.skip_steps == 0:
        return "no data" + ("" if start is None else f", continues at sample {count(start)}")
    text = f"{counted(preview.skip_steps, 'step')} of data"
    if preview.skipped_samples is not None:
        text += f" ({counted(preview.skipped_samples, 'sample')})"
    return text if start is None else f"{text}, from sample {count(start)} on"


def _changes_rate(preview: CommandPreview) -> bool:
    return _cut(preview.parameters) is not None


def _cut(parameters: CommandParameters) -> ReduceLrParameters | None:
    if isinstance(parameters, ReduceLrParameters):
        return parameters
    return parameters.reduce_lr if isinstance(parameters, RollbackParameters) else None


def _held(parameters: CommandParameters) -> str:
    cut = _cut(parameters)
    if cut is None or cut.hold_steps is None:
        return "held until changed"
    text = f"held for {counted(cut.hold_steps, 'step')}"
    return (
        f"{text}, then ramp back over {counted(cut.ramp_steps, 'step')}" if cut.ramp_steps else text
    )


def _rates_table(preview: CommandPreview) -> Component:
    rows = [
        [group, number(rate), ARROW, number(preview.lr_after.get(group), unknown="unknown")]
        for group, rate in preview.lr.items()
    ]
    head = html.Thead(html.Tr([html.Th("group"), html.Th("now"), html.Th(""), html.Th("after")]))
    body = html.Tbody([html.Tr([html.Td(cell) for cell in row]) for row in rows])
    return html.Table([html.Caption("learning rate"), head, body], className="small-table rates")


def _warnings(preview: CommandPreview) -> Component:
    return html.Ul(
        [
            html.Li([mark(WARNING), html.Span(capital(phrase(warning)))])
            for warning in preview.warnings
        ],
        className="warnings",
    )


_STAGE_STYLES: Final = {
    StageState.DONE: BadgeStyle("teal", Shape.CHECK),
    StageState.NOW: BadgeStyle("blue", Shape.DOT),
    StageState.AHEAD: BadgeStyle("gray", Shape.RING),
    StageState.BROKEN: BadgeStyle("red", Shape.CROSS),
    StageState.UNKNOWN: BadgeStyle("gray", Shape.DIAMOND),
}
_CHECK_TEXTS: Final = {
    True: (BadgeStyle("teal", Shape.CHECK), "matches"),
    False: (BadgeStyle("red", Shape.CROSS), "differs"),
    None: (BadgeStyle("gray", Shape.DIAMOND), "unknown"),
}


def command_card(
    command: Command,
    *,
    now: datetime,
    preview: CommandPreview | None = None,
    history: Sequence[AuditEntry] = (),
    known: ReadBackContext | None = None,
) -> Component:
    """Show a command.

    Args:
        command: The command.
        now: Current time.
        preview: Effect of the command; shown until it is settled.
        history: Audit entries, of this command or of others too.
        known: Context to compare its read-back with.
    """
    verdict = verify(command, known)
    steps = stages(command, history=history, verdict=verdict)
    batch = None if known is None else known.global_batch
    return html.Article(
        [
            _header(command, now),
            html.P(capital(command_sentence(command.parameters, global_batch=batch)) + "."),
            _why(command, history),
            progress_list(steps),
            *_preview(command, preview),
            *([verdict_table(verdict)] if verdict.checks else []),
            *_ending(command, steps[-1].who),
            *_buttons(command, now),
        ],
        className="card command-card",
    )


def _preview(command: Command, preview: CommandPreview | None) -> Iterator[Component]:
    if not command.is_settled:
        shown = None if preview is None else preview_panel(preview)
        yield html.Div(shown, id={"type": ids.PREVIEW, "id": command.id})


def _header(command: Command, now: datetime) -> Component:
    facts: list[str | Component] = [
        f"by {actor_name(command.actor)}",
        since(command.issued_at, now),
        f"attempt {command.attempt}",
    ]
    if command.issued_step is not None:
        facts.append(f"step {count(command.issued_step)}")
    return html.Header(
        [
            html.Div(
                [
                    html.H4(capital(command_title(command.parameters))),
                    command_state_badge(command.state),
                ],
                className="card-title",
            ),
            facts_line(facts),
            *_time_left(command, now),
        ]
    )


def _time_left(command: Command, now: datetime) -> Iterator[Component]:
    if command.state not in (CommandState.PROPOSED, CommandState.PENDING):
        return
    if left(command.expires_at, now) is None:
        text: list[str | Component] = [f"expired at {clock(command.expires_at)} UTC"]
    else:
        text = ["expires in ", until(command.expires_at, now)]
    yield html.Div([mark(WARNING), html.Span(text)], className="time-left")


def _why(command: Command, history: Sequence[AuditEntry]) -> Component:
    """Show why the command was created; a settled command holds the reason of its end instead."""
    created = next(
        (
            entry
            for entry in history
            if entry.subject == command.id and entry.action is AuditAction.COMMAND_CREATED
        ),
        None,
    )
    reason, message = command.reason, command.message
    if created is not None:
        reason, message = created.reason.value, created.message
    elif command.state in _ENDED_EARLY:
        return html.P(f"Sent by {actor_name(command.actor)}.", className="why")
    if is_user(command.actor):
        return html.P([f"{actor_name(command.actor)}: ", html.Q(message)], className="why")
    return html.P(f"Reason: {reason_phrase(reason)}.", className="why")


_ENDED_EARLY: Final = frozenset(
    {
        CommandState.REJECTED,
        CommandState.FAILED,
        CommandState.EXPIRED,
        CommandState.CANCELLED,
    }
)


def progress_list(steps: Sequence[Stage]) -> Component:
    """Show the stages of a command in order, side by side if there is room."""
    return html.Ol(
        [_stage(stage) for stage in steps],
        className="stages",
        **aria(label="progress of the command"),
    )


def _stage(stage: Stage) -> Component:
    small: list[str | Component] = []
    if stage.who:
        small.append(stage.who)
    if stage.at is not None:
        small.append(html.Span(f"{clock(stage.at)} UTC", title=moment(stage.at)))
    is_now = stage.state is StageState.NOW
    # "approval needed" instead of "approved" while it is pending.
    name, text = (stage.text, "") if is_now else (stage.name, stage.text)
    return html.Li(
        [
            html.Div([mark(_STAGE_STYLES[stage.state]), html.Span(name)], className="stage"),
            *([facts_line(small)] if small else []),
            *([html.Div(text, className="stage-text")] if text else []),
        ],
        className=f"stage-{stage.state}",
        **(aria(current="step") if is_now else {}),
    )


def verdict_table(verdict: ReadBackVerdict) -> Component:
    """Show expected values beside those that the job read back."""
    head = html.Thead(
        html.Tr([html.Th("value"), html.Th("expected"), html.Th("read back"), html.Th("")])
    )
    return html.Table(
        [head, html.Tbody([_check_row(check) for check in verdict.checks])],
        className="small-table verdict",
    )


def _check_row(check: ReadBackCheck) -> Component:
    style, text = _CHECK_TEXTS[check.ok]
    result = html.Span([mark(style), html.Span(text)], className="check-result")
    return html.Tr(
        [
            html.Th(check.what, scope="row"),
            html.Td(check.expected),
            html.Td(check.read),
            html.Td(result),
        ]
    )


def _ending(command: Command, who: str) -> Iterator[Component]:
    """Quote the message of the job, or of the user who ended the command."""
    result = command.result
    message = command.message if result is None else result.message
    if not message or (result is None and command.state not in _ENDED_EARLY):
        return
    if result is None:
        yield html.P([f"{who or 'reason given'}: ", html.Q(message)], className="why")
    else:
        children = [
            html.Div("Message from the job:", className="why"),
            html.Pre(message, className="job-text"),
        ]
        yield html.Div(children, className=f"ending ending-{command.state}")


def _buttons(command: Command, now: datetime) -> Iterator[Component]:
    if command.state is CommandState.PROPOSED and left(command.expires_at, now) is not None:
        buttons = [
            _button("Approve", ids.APPROVE, command.id, variant="filled"),
            _button("Reject", ids.REJECT, command.id, variant="default"),
        ]
    elif command.state is CommandState.PENDING:
        buttons = [_button("Cancel", ids.CANCEL, command.id, variant="default")]
    else:
        return
    yield html.Div(buttons, className="card-actions")


def _button(text: str, kind: str, command_id: str, *, variant: str) -> Component:
    # The dots announce a dialog.
    button: Component = dmc.Button(
        f"{text} \N{HORIZONTAL ELLIPSIS}",
        id={"type": kind, "id": command_id},
        size="sm",
        variant=variant,
    )
    return button
