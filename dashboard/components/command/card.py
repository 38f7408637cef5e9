"""A command as a card: what it would do, how far it is, what was read back, how it ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import dash_mantine_components as dmc
from dash import html
from dash.development.base_component import Component

from dashboard.components.badges import (
    WARNING,
    Look,
    Shape,
    command_state_badge,
    mark,
)
from dashboard.components.command.preview import preview_panel
from dashboard.components.command.progress import (
    Baseline,
    Check,
    Stage,
    StageState,
    Verdict,
    stages,
    verify,
)
from dashboard.components.facts import aria, facts_line
from dashboard.components.times import since, until
from dashboard.words.amounts import (
    clock,
    count,
    left,
    moment,
)
from dashboard.words.phrases import (
    actor_name,
    capital,
    command_sentence,
    command_title,
    is_person,
    reason_phrase,
)
from stabilizer.protocol.commands import (
    Command,
    CommandState,
)
from stabilizer.protocol.queries import AuditAction, AuditEntry
from stabilizer.protocol.views import CommandPreview

_STAGE_LOOKS: Final = {
    StageState.DONE: Look("teal", Shape.CHECK),
    StageState.NOW: Look("blue", Shape.DOT),
    StageState.AHEAD: Look("gray", Shape.RING),
    StageState.BROKEN: Look("red", Shape.CROSS),
    StageState.UNKNOWN: Look("gray", Shape.DIAMOND),
}
_CHECK_WORDS: Final = {
    True: (Look("teal", Shape.CHECK), "as ordered"),
    False: (Look("red", Shape.CROSS), "differs"),
    None: (Look("gray", Shape.DIAMOND), "cannot be told"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandActions:
    """Types of the ids within a card; the whole id is `{"type": ..., "id": command.id}`."""

    approve: str
    reject: str
    cancel: str
    preview: str
    """Of what holds the preview, which changes with every step: it can be replaced alone."""


def command_card(
    command: Command,
    *,
    now: datetime,
    preview: CommandPreview | None = None,
    history: Sequence[AuditEntry] = (),
    known: Baseline | None = None,
    actions: CommandActions | None = None,
) -> Component:
    """Show a command.

    Args:
        command: The command.
        now: For the time that a proposal has left.
        preview: What it would do; shown until it is settled.
        history: Audit entries, of this command or of more.
        known: What its read-back can be compared with.
        actions: Types of the ids; None shows no buttons.
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
            *_preview(command, preview, actions),
            *([verdict_table(verdict)] if verdict.checks else []),
            *_ending(command, steps[-1].who),
            *_buttons(command, now, actions),
        ],
        className="card command-card",
    )


def _preview(
    command: Command, preview: CommandPreview | None, actions: CommandActions | None
) -> Iterator[Component]:
    if command.is_settled:
        return
    shown = None if preview is None else preview_panel(preview)
    if actions is not None:
        yield html.Div(shown, id={"type": actions.preview, "id": command.id})
    elif shown is not None:
        yield shown


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
    """Say why it was given. A settled one names why it ended; its first reason is in the log."""
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
    elif command.state in _ENDED_BADLY:
        return html.P(f"Given by {actor_name(command.actor)}.", className="why")
    if is_person(command.actor):
        return html.P([f"{actor_name(command.actor)}: ", html.Q(message)], className="why")
    return html.P(f"Because {reason_phrase(reason)}.", className="why")


_ENDED_BADLY: Final = frozenset(
    {
        CommandState.REJECTED,
        CommandState.FAILED,
        CommandState.EXPIRED,
        CommandState.CANCELLED,
    }
)


def progress_list(steps: Sequence[Stage]) -> Component:
    """Show the stages of a command in order; side by side where there is room."""
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
    # What has not come yet is not called by the name of what will have been.
    name, text = (stage.text, "") if is_now else (stage.name, stage.text)
    return html.Li(
        [
            html.Div([mark(_STAGE_LOOKS[stage.state]), html.Span(name)], className="stage"),
            *([facts_line(small)] if small else []),
            *([html.Div(text, className="stage-text")] if text else []),
        ],
        className=f"stage-{stage.state}",
        **(aria(current="step") if is_now else {}),
    )


def verdict_table(verdict: Verdict) -> Component:
    """Show what was ordered beside what the job read from itself."""
    head = html.Thead(
        html.Tr([html.Th("read back"), html.Th("ordered"), html.Th("read"), html.Th("")])
    )
    return html.Table(
        [head, html.Tbody([_check_row(check) for check in verdict.checks])],
        className="small-table verdict",
    )


def _check_row(check: Check) -> Component:
    looks, word = _CHECK_WORDS[check.ok]
    answer = html.Span([mark(looks), html.Span(word)], className="answer")
    return html.Tr(
        [
            html.Th(check.what, scope="row"),
            html.Td(check.expected),
            html.Td(check.read),
            html.Td(answer),
        ]
    )


def _ending(command: Command, who: str) -> Iterator[Component]:
    """Give the words of whoever carried it out or ended it; the last stage says what it was."""
    result = command.result
    message = command.message if result is None else result.message
    if not message or (result is None and command.state not in _ENDED_BADLY):
        return
    if result is None:
        yield html.P([f"{who or 'reason given'}: ", html.Q(message)], className="why")
    else:
        words = [
            html.Div("The job says:", className="why"),
            html.Pre(message, className="job-text"),
        ]
        yield html.Div(words, className=f"ending ending-{command.state}")


def _buttons(
    command: Command, now: datetime, actions: CommandActions | None
) -> Iterator[Component]:
    if actions is None:
        return
    if command.state is CommandState.PROPOSED and left(command.expires_at, now) is not None:
        buttons = [
            _button("Approve", actions.approve, command.id, variant="filled"),
            _button("Reject", actions.reject, command.id, variant="default"),
        ]
    elif command.state is CommandState.PENDING:
        buttons = [_button("Take back", actions.cancel, command.id, variant="default")]
    else:
        return
    yield html.Div(buttons, className="card-actions")


def _button(text: str, kind: str, command_id: str, *, variant: str) -> Component:
    # The dots say that a dialog follows: nothing is done by this click alone.
    button: Component = dmc.Button(
        f"{text} \N{HORIZONTAL ELLIPSIS}",
        id={"type": kind, "id": command_id},
        size="sm",
        variant=variant,
    )
    return button
