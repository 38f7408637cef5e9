"""A command: what it would do, how far it has come, what the job read back, how it ended."""

from __future__ import annotations

from dashboard.components.command.card import CommandActions, command_card
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

__all__ = [
    "Baseline",
    "Check",
    "CommandActions",
    "Stage",
    "StageState",
    "Verdict",
    "command_card",
    "preview_panel",
    "stages",
    "verify",
]
