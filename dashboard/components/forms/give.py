"""The form for a command by hand. Only the fields of the chosen kind are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import dash_mantine_components as dmc
from dash import html
from dash.development.base_component import Component

from dashboard.components.badges import healthy_badge
from dashboard.components.forms.ids import CommandFormIds
from dashboard.components.forms.parts import form_body, whole_number
from dashboard.words.amounts import count
from dashboard.words.phrases import capital, phrase
from stabilizer.protocol.commands import CommandKind
from stabilizer.protocol.views import SnapshotState

_MEANINGS: Final[Mapping[CommandKind, str]] = {
    CommandKind.ROLLBACK: "Rewind to a snapshot, go on behind the data that hurt",
    CommandKind.REDUCE_LR: "Multiply the rate of every group, on top of the schedule",
    CommandKind.PAUSE: "Stand still at a step boundary, until resume or stop",
    CommandKind.RESUME: "Go on after a pause",
    CommandKind.STOP: "End the training in good order; it cannot be resumed from here",
    CommandKind.CHECKPOINT_NOW: "Write durable state at a step boundary, and train on",
}


def command_form(
    ids: CommandFormIds,
    *,
    snapshots: Sequence[SnapshotState],
    kind: CommandKind = CommandKind.ROLLBACK,
) -> Component:
    """Ask for a command by hand.

    Args:
        ids: Of the form.
        snapshots: What the job holds; the newest healthy one is chosen at first.
        kind: Chosen at first.
    """
    kinds = dmc.RadioGroup(
        html.Div([_kind(one) for one in CommandKind], className="options options-wide"),
        id=ids.kind,
        value=kind.value,
        label="Command",
    )
    fields = (
        kinds,
        html.Div(_rollback_fields(ids, snapshots), className="for-rollback"),
        html.Div(_cut_fields(ids), className="for-cut fields-beside"),
    )
    body = form_body(ids, fields, submit="Give the command")
    return html.Div(body, className="command-form")


def _kind(kind: CommandKind) -> Component:
    radio: Component = dmc.Radio(
        value=kind.value, label=capital(phrase(kind)), description=_MEANINGS[kind]
    )
    return radio


def _rollback_fields(ids: CommandFormIds, snapshots: Sequence[SnapshotState]) -> list[Component]:
    ordered = sorted(
        snapshots, key=lambda one: (one.snapshot.step, one.snapshot.attempt), reverse=True
    )
    healthy = (one.snapshot.id for one in ordered if one.healthy and one.snapshot.finite)
    choices = [_snapshot(one) for one in ordered]
    empty = html.P("The job holds no snapshot: it cannot go back.", className="empty")
    return [
        dmc.RadioGroup(
            html.Div(choices or empty, className="options snapshots"),
            id=ids.snapshot,
            value=next(healthy, None),
            label="Snapshot to go back to",
        ),
        whole_number(
            ids.skip_steps,
            "Skip",
            value=0,
            description="Data left out from there on, so that what hurt is not met again",
            unit="steps of data",
        ),
        dmc.Checkbox(id=ids.with_cut, label="Cut the learning rate as well", className="with-cut"),
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


def _cut_fields(ids: CommandFormIds) -> list[Component]:
    factor = dmc.NumberInput(
        id=ids.factor,
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
            ids.hold_steps,
            "Hold for",
            value=500,
            description="Empty: until told otherwise",
            placeholder="until told otherwise",
        ),
        whole_number(
            ids.ramp_steps,
            "Then ramp back over",
            value=500,
            description="0: back at once",
        ),
    ]
