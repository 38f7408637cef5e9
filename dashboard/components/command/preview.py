"""What a command would do if the job took it up now."""

from __future__ import annotations

from collections.abc import Iterator

from dash import html
from dash.development.base_component import Component

from dashboard.components.badges import WARNING, healthy_badge, mark
from dashboard.components.facts import Content, facts_table
from dashboard.words.amounts import ARROW, change, count, counted, duration, number
from dashboard.words.phrases import capital, command_sentence, phrase
from stabilizer.protocol.commands import (
    CommandParameters,
    ReduceLrParameters,
    RollbackParameters,
)
from stabilizer.protocol.views import CommandPreview


def preview_panel(preview: CommandPreview) -> Component:
    """Show what a command would do if the job took it up now."""
    return html.Section(
        [
            html.H5("What it would do now"),
            facts_table(list(_preview_lines(preview))),
            *([_rates_table(preview)] if _changes_rate(preview) and preview.lr else []),
            *([_warnings(preview)] if preview.warnings else []),
        ],
        className="preview",
    )


def _preview_lines(preview: CommandPreview) -> Iterator[tuple[str, Content]]:
    parameters = preview.parameters
    yield "run", f"attempt {preview.attempt}, step {count(preview.step)}"
    if isinstance(parameters, RollbackParameters):
        target = parameters.target
        place = (
            f"step {count(target.step)}, attempt {target.attempt}, snapshot {target.snapshot_id}"
        )
        health = [] if preview.target_healthy is None else [_health(preview.target_healthy)]
        yield "goes back to", [place, *health]
        yield "trains again", _lost(preview)
        yield "skips", _skipped(preview)
    elif isinstance(parameters, ReduceLrParameters):
        yield "loses", "nothing: no step is trained again, no data is skipped"
    else:
        yield "does", command_sentence(parameters)
    if _changes_rate(preview):
        scale = change(preview.lr_scale_before, preview.lr_scale_after)
        yield "lr_scale", f"{scale}, {_held(parameters)}"


def _health(healthy: bool) -> Component:
    return html.Span([" ", healthy_badge(healthy=healthy)])


def _lost(preview: CommandPreview) -> str:
    text = counted(preview.steps_lost, "step")
    if preview.seconds_lost is not None:
        return f"{text}, about {duration(preview.seconds_lost)}"
    return f"{text}; how long is not known"


def _skipped(preview: CommandPreview) -> str:
    start = preview.skip_from_sample
    if preview.skip_steps == 0:
        return "no data" + ("" if start is None else f", goes on at sample {count(start)}")
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
        return "held until told otherwise"
    text = f"held for {counted(cut.hold_steps, 'step')}"
    return f"{text}, then back over {counted(cut.ramp_steps, 'step')}" if cut.ramp_steps else text


def _rates_table(preview: CommandPreview) -> Component:
    rows = [
        [group, number(rate), ARROW, number(preview.lr_after.get(group), unknown="not known")]
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
