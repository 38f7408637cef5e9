"""What users can do: one module per action, with its form, its callbacks and its call.

Every action opens a dialog and asks for a reason; none acts on a single click. A module has
`dialog`, which builds its closed dialog with its stores, and `register`, which wires it.
"""

from __future__ import annotations

from typing import Final

from dash import Dash
from dash.development.base_component import Component

from dashboard.actions import answer, arming, end_silence, mode, send_command, silence
from dashboard.client import Collector
from stabilizer.clock import Clock

_RUN_ACTIONS: Final = (answer, send_command, mode, silence)
_CONTROL_ACTIONS: Final = (arming, end_silence)


def run_dialogs() -> list[Component]:
    """Build the dialogs of a run's page."""
    return [part for action in _RUN_ACTIONS for part in action.dialog()]


def control_dialogs() -> list[Component]:
    """Build the dialogs of the control page."""
    return [part for action in _CONTROL_ACTIONS for part in action.dialog()]


def register_actions(app: Dash, collector: Collector, clock: Clock) -> None:
    """Register the callbacks of every action."""
    for action in (*_RUN_ACTIONS, *_CONTROL_ACTIONS):
        action.register(app, collector, clock)
