"""Callbacks of the control page: global switch, silences and audit log."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from dash import Dash, Input, Output, State, no_update
from dash.development.base_component import Component
from dash.exceptions import PreventUpdate

from dashboard import ids
from dashboard.callbacks.renewal import only_changed
from dashboard.client import Collector, CollectorApi
from dashboard.components.problems import problem_of
from dashboard.errors import DashboardError
from dashboard.pages.control import armed_badge, audit_list, silence_list, switch_card
from stabilizer.clock import Clock

PARTS: Final = (ids.CONTROL_STATE, ids.CONTROL_SILENCES, ids.CONTROL_AUDIT)
"""Components whose children are renewed, in the order of `ControlView.parts`."""

_ENTRIES: Final = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlView:
    """Content of the page."""

    parts: Sequence[Any]
    """One for each of `PARTS`; `no_update` for unchanged ones."""
    facts: Mapping[str, Any]
    """State of the switch and a fingerprint of each part; JSON, for a store."""


async def view_control(
    client: CollectorApi, facts: Mapping[str, Any] | None, now: datetime
) -> ControlView:
    """Read control state and audit log, and build the parts that changed.

    Args:
        client: Client of the collector.
        facts: Facts of the previous view, if any.
        now: Current time.

    Raises:
        DashboardError: The collector is not available.
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


def register(app: Dash, collector: Collector, clock: Clock) -> None:
    """Register the callbacks of the page, and of the badge in the header of every page."""

    @app.callback(
        Output(ids.CONTROL_PROBLEM, "children"),
        *(Output(part, "children") for part in PARTS),
        Output(ids.CONTROL_FACTS, "data"),
        Input(ids.LIVE_CONTROL, "data"),
        Input(ids.LIVE_DECISIONS, "data"),
        Input(ids.CLOCK, "n_intervals"),
        State(ids.CONTROL_FACTS, "data"),
    )
    async def show_control(
        _updates: Any,  # noqa: ANN401  JSON, only its change matters
        _decisions: Any,  # noqa: ANN401  likewise
        _clock: int | None,
        facts: dict[str, Any] | None,
    ) -> tuple[Any, ...]:
        try:
            view = await view_control(collector.for_request(), facts, clock.now())
        except DashboardError as error:
            if facts:
                raise PreventUpdate from error
            return problem_of(error, "/control"), *[no_update] * (len(PARTS) + 1)
        return None, *view.parts, view.facts

    @app.callback(
        Output(ids.ARMED_BADGE, "children"),
        Input(ids.LIVE_CONTROL, "data"),
        Input(ids.CLOCK, "n_intervals"),
    )
    async def show_armed(
        _updates: Any,  # noqa: ANN401  JSON, only its change matters
        _clock: int | None,
    ) -> Component | None:
        try:
            return armed_badge(await collector.for_request().control())
        except DashboardError as error:
            raise PreventUpdate from error
