"""The dialogs of the pages: empty and closed until somebody opens one."""

from __future__ import annotations

from typing import Final

from dash import dcc
from dash.development.base_component import Component

from dashboard import ids
from dashboard.components.forms import (
    CommandFormIds,
    FormIds,
    ModeFormIds,
    SilenceFormIds,
    dialog,
)
from dashboard.components.forms.parts import form_body


def _common(name: str) -> dict[str, str]:
    parts = ("dialog", "reason", "submit", "dismiss", "preview", "status")
    return {part: f"{name}-{part}" for part in parts}


WORD: Final = FormIds(**_common("word"))
ORDER: Final = CommandFormIds(
    **_common("order"),
    kind="order-kind",
    snapshot="order-snapshot",
    skip_steps="order-skip-steps",
    with_cut="order-with-cut",
    factor="order-factor",
    hold_steps="order-hold-steps",
    ramp_steps="order-ramp-steps",
)
MODE: Final = ModeFormIds(**_common("mode"), mode="mode-mode")
SILENCE: Final = SilenceFormIds(
    **_common("silence"),
    rule="silence-rule",
    end="silence-end",
    minutes="silence-minutes",
    until_step="silence-until-step",
)
SWITCH: Final = FormIds(**_common("switch"))
UNSILENCE: Final = FormIds(**_common("unsilence"))


def run_dialogs() -> list[Component]:
    """Build the dialogs of a run's page."""
    return [
        dcc.Store(id=ids.WORD_TARGET),
        dcc.Store(id=ids.ORDER_ATTEMPT),
        dialog(WORD, "A command"),
        dialog(ORDER, "Send a command"),
        dialog(MODE, "How far the policy may go"),
        dialog(SILENCE, "Silence a rule"),
    ]


def control_dialogs() -> list[Component]:
    """Build the dialogs of the page with the switch."""
    return [
        dcc.Store(id=ids.SWITCH_TARGET),
        dcc.Store(id=ids.UNSILENCE_TARGET),
        dialog(SWITCH, "All runs"),
        dialog(UNSILENCE, "End a silence"),
    ]


def ending_form() -> Component:
    """Ask for the reason of ending a silence."""
    return form_body(UNSILENCE, (), submit="End the silence")
