"""Ids of the inputs of each dialog: whoever wires them names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

ComponentId: TypeAlias = str | dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class FormIds:
    """What every dialog has."""

    dialog: ComponentId
    """The window itself; its `opened` opens and closes it."""
    reason: ComponentId
    """`value`: why; empty or blank is refused."""
    submit: ComponentId
    """Button that does it."""
    dismiss: ComponentId
    """Button that closes the window with nothing done."""
    preview: ComponentId
    """`children`: what it would do, as `preview_panel` shows it."""
    status: ComponentId
    """`children`: what is happening or went wrong, as the notices of this package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandFormIds(FormIds):
    """A command by hand."""

    kind: ComponentId
    """`value`: a `CommandKind` value."""
    snapshot: ComponentId
    """`value`: id of a snapshot, or None."""
    skip_steps: ComponentId
    with_cut: ComponentId
    """`checked`: whether a rollback cuts the learning rate too."""
    factor: ComponentId
    hold_steps: ComponentId
    """`value`: a number; empty holds the cut until told otherwise."""
    ramp_steps: ComponentId


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeFormIds(FormIds):
    """A change of mode."""

    mode: ComponentId
    """`value`: a `Mode` value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SilenceFormIds(FormIds):
    """A silence."""

    rule: ComponentId
    """`value`: name of a rule, or `*` for every rule."""
    end: ComponentId
    """`value`: `minutes` or `step`."""
    minutes: ComponentId
    until_step: ComponentId
