"""An address that leads nowhere."""

from __future__ import annotations

from dash.development.base_component import Component

from dashboard.components.problem import problem


def not_found(**_: object) -> Component:
    """Say that there is no such page, and lead on."""
    return problem(
        "There is no such page",
        "The address may be typed wrong. What you look for is most likely in the list of runs.",
    )
