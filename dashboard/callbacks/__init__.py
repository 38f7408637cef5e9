"""What fills the pages and reacts to users: one module per page or chart family."""

from __future__ import annotations

from collections.abc import Callable

from dash import Dash

from dashboard.actions import register_actions
from dashboard.callbacks import control, heatmap, live, panels, run, runs
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
        app: The Dash app.
        collector: Queried in the name of the visitor of each request.
        hub: Live updates from the collector.
        clock: For relative times such as "3 min ago".
        is_signed_in: Whether a visitor's session is still valid.
    """
    live.register(app, collector, hub, clock, is_signed_in)
    runs.register(app, collector, clock)
    run.register(app, collector, clock)
    panels.register(app, collector, clock)
    heatmap.register(app, collector)
    register_actions(app, collector, clock)
    control.register(app, collector, clock)
