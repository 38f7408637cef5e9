"""What holds for all runs: the switch, silences, and the log of everything that was done."""

from __future__ import annotations

import dash_mantine_components as dmc
from dash import dcc, html
from dash.development.base_component import Component

from dashboard import ids
from dashboard.components.deeds import control_dialogs


def control(**_: object) -> Component:
    """Build the page; its parts come with the first answers."""
    return html.Div(
        [
            dmc.Title("Control", order=2),
            dcc.Store(id=ids.SWITCH_FACTS),
            html.Div(id=ids.CONTROL_PROBLEM),
            html.Div(
                [
                    html.Section(
                        [html.Div(dmc.Skeleton(height=90), id=ids.CONTROL_STATE)],
                        className="card",
                    ),
                    html.Section(
                        [html.H3("Silences in force"), html.Div(id=ids.CONTROL_SILENCES)],
                        className="card",
                    ),
                ],
                className="control-grid",
            ),
            html.Section(
                [html.H3("Everything that was done"), html.Div(id=ids.CONTROL_AUDIT)],
                className="card",
            ),
            *control_dialogs(),
        ],
        className="control-page",
    )
