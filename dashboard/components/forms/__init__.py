"""Dialogs in which people act. Every one asks for a reason; none acts on a single click."""

from __future__ import annotations

from dashboard.components.forms.deeds import (
    ALL_RULES,
    MAX_SILENCE_MINUTES,
    Verb,
    arming_form,
    mode_form,
    silence_form,
    word_form,
)
from dashboard.components.forms.give import command_form
from dashboard.components.forms.ids import (
    CommandFormIds,
    ComponentId,
    FormIds,
    ModeFormIds,
    SilenceFormIds,
)
from dashboard.components.forms.parts import (
    REASON_MISSING,
    dialog,
    done_notice,
    error_notice,
    progress_notice,
)

__all__ = [
    "ALL_RULES",
    "MAX_SILENCE_MINUTES",
    "REASON_MISSING",
    "CommandFormIds",
    "ComponentId",
    "FormIds",
    "ModeFormIds",
    "SilenceFormIds",
    "Verb",
    "arming_form",
    "command_form",
    "dialog",
    "done_notice",
    "error_notice",
    "mode_form",
    "progress_notice",
    "silence_form",
    "word_form",
]
