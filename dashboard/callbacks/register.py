"""All callbacks of the dashboard."""

from __future__ import annotations

from collections.abc import Callable

from dash import Dash

from dashboard.callbacks import charts, control, decisions, deeds, live, runs
from dashboard.client import Collector, LiveHub
from dashboard.visitor import Visitor
from stabilizer.clock import Clock


def register_callbacks(
    app: Dash,
    collector: Collector,
    hub: LiveHub,
    clock: Clock,
    is_signed_in: Callable[[Visitor], bool],
) -> None:
    """Register every callback.

    Args:
        app: Whose pages.
        collector: Is asked in the name of the visitor of each request.
        hub: News of the collector.
        clock: For "3 min ago".
        is_signed_in: Whether a visitor's session goes on.
    """
    live.register(app, collector, hub, clock, is_signed_in)
    runs.register(app, collector, clock)
    decisions.register(app, collector, clock)
    charts.register(app, collector, clock)
    deeds.register(app, collector, clock)
    control.register(app, collector, clock)
