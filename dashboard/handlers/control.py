"""The page with the switch: its parts, and which of them must be drawn anew."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from dash.development.base_component import Component

from dashboard import ids
from dashboard.client import CollectorClient
from dashboard.components.control import audit_list, silence_list, switch_card
from dashboard.handlers.renewal import only_changed

PARTS: Final = (ids.CONTROL_STATE, ids.CONTROL_SILENCES, ids.CONTROL_AUDIT)
"""Components whose children are renewed, in the order of `ControlView.parts`."""

_ENTRIES: Final = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlView:
    """What goes to the page."""

    parts: Sequence[Any]
    """As many as `PARTS`; no update in place of those that the page has already."""
    facts: Mapping[str, Any]
    """How the switch stands, and a fingerprint of each part; JSON, for a store."""


async def view_control(
    client: CollectorClient, facts: Mapping[str, Any] | None, now: datetime
) -> ControlView:
    """Ask for the switch, the silences and the log, and draw what has changed.

    Args:
        client: Asks.
        facts: Of the view before, if the page has one.
        now: For "3 min ago".

    Raises:
        DashboardError: The collector cannot be asked.
    """
    state, entries = await asyncio.gather(client.control(), client.audit())
    parts: tuple[Component, ...] = (
        switch_card(state, now),
        silence_list(state.silences, now),
        audit_list(entries, now, _ENTRIES),
    )
    changed, digests = only_changed(PARTS, parts, (facts or {}).get("digests", {}))
    return ControlView(
        parts=changed,
        facts={"disarmed": state.disarmed, "digests": digests},
    )
