"""Forms for a person's word: on a command, on the mode, on a rule, on everything at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import dash_mantine_components as dmc
from dash import html
from dash.development.base_component import Component

from dashboard.components.command.preview import preview_panel
from dashboard.components.forms.ids import FormIds, ModeFormIds, SilenceFormIds
from dashboard.components.forms.parts import form_body, whole_number
from dashboard.words.phrases import capital, command_sentence, label, phrase
from stabilizer.protocol.commands import Command
from stabilizer.protocol.decisions import Mode
from stabilizer.protocol.views import CommandPreview

ALL_RULES: Final = "*"
MAX_SILENCE_MINUTES: Final = 7 * 24 * 60
"""A week: what is muted for longer is forgotten."""
_SILENCE_STEPS: Final = 200
"""Steps ahead that are suggested for the end of a silence."""


class Verb(StrEnum):
    """What a person does with a command."""

    APPROVE = "approve"
    REJECT = "reject"
    CANCEL = "cancel"


_SUBMIT: Final[Mapping[Verb, str]] = {
    Verb.APPROVE: "Approve",
    Verb.REJECT: "Reject",
    Verb.CANCEL: "Take back",
}
_MEANING: Final[Mapping[Verb, str]] = {
    Verb.APPROVE: "The job gets the command with its next sign of life and carries it out at a "
    "step boundary.",
    Verb.REJECT: "The job never gets the command. The policy holds back for its cooldown, then "
    "proposes again if it is still due.",
    Verb.CANCEL: "The job does not have the command yet and will not get it.",
}


def word_form(
    ids: FormIds,
    verb: Verb,
    command: Command,
    *,
    global_batch: int | None = None,
    preview: CommandPreview | None = None,
) -> Component:
    """Ask for the reason of approving, rejecting or taking back a command.

    Args:
        ids: Of the form.
        verb: What is done.
        command: To it.
        global_batch: Samples of one step, if known.
        preview: What the command would do, if that is known already.
    """
    sentence = command_sentence(command.parameters, global_batch=global_batch)
    shown = None if preview is None else preview_panel(preview)
    body = form_body(
        ids,
        (),
        submit=_SUBMIT[verb],
        tone="red" if verb is Verb.REJECT else None,
        preview=shown,
    )
    return html.Div(
        [
            html.P(html.Strong(f"{capital(sentence)}."), className="form-intro"),
            html.P(_MEANING[verb], className="form-intro"),
            body,
        ]
    )


def mode_form(ids: ModeFormIds, *, mode: Mode) -> Component:
    """Ask how far the policy may go.

    Args:
        ids: Of the form.
        mode: The present one.
    """
    options = [
        dmc.Radio(
            value=one.value,
            label=label(one) + (" (now)" if one is mode else ""),
            description=capital(phrase(one)),
        )
        for one in Mode
    ]
    choice = dmc.RadioGroup(
        html.Div(options, className="options"), id=ids.mode, value=mode.value, label="Mode"
    )
    note = html.P(
        "Observe also takes back commands of the policy that the job does not have yet.",
        className="form-intro",
    )
    return form_body(ids, (choice, note), submit="Change the mode")


def silence_form(ids: SilenceFormIds, *, rules: Sequence[str], step: int | None) -> Component:
    """Ask which rule is muted for decisions, and until when.

    Args:
        ids: Of the form.
        rules: Names of the rules.
        step: Where the run stands; None for a silence over all runs, which can only end by time.
    """
    data = [{"value": ALL_RULES, "label": "all rules"}]
    data += [{"value": rule, "label": rule} for rule in rules]
    rule = dmc.Select(
        id=ids.rule,
        label="Rule",
        description="It goes on being evaluated and shown; the policy does not act on it",
        data=data,
        value=rules[0] if rules else ALL_RULES,
        searchable=True,
        allowDeselect=False,
        openOnFocus=False,
        **{"data-autofocus": True},
    )
    ends = [dmc.Radio(value="minutes", label="for some time")]
    if step is not None:
        ends.append(dmc.Radio(value="step", label="until a step of this run"))
    end = dmc.RadioGroup(
        html.Div(ends, className="options"), id=ids.end, value="minutes", label="How long"
    )
    minutes = whole_number(
        ids.minutes,
        "Time",
        value=60,
        description="From now on, by the clock; a week at most",
        unit="min",
        least=1,
        most=MAX_SILENCE_MINUTES,
    )
    until_step = whole_number(
        ids.until_step,
        "Until step",
        value=None if step is None else step + _SILENCE_STEPS,
        description="The silence ends behind this step",
        unit="",
        least=0 if step is None else step,
        most=2**53,
    )
    fields = (
        rule,
        end,
        html.Div(minutes, className="for-minutes"),
        html.Div(until_step, className="for-step"),
    )
    return html.Div(form_body(ids, fields, submit="Silence"), className="silence-form")


def arming_form(ids: FormIds, *, disarmed: bool) -> Component:
    """Ask for the reason of disarming everything, or of arming it again.

    Args:
        ids: Of the form.
        disarmed: How it is now.
    """
    meaning = (
        "The policy may act again on every run, as far as each run's mode lets it."
        if disarmed
        else "The policy acts on no run at all, and its commands that no job has yet are taken "
        "back. Rules go on, incidents are shown, commands by hand still work."
    )
    body = form_body(
        ids, (), submit="Arm again" if disarmed else "Disarm all", tone=None if disarmed else "red"
    )
    return html.Div([html.P(meaning, className="form-intro"), body])
