"""The frame of every page: header with navigation, connection, user, and banners."""

from __future__ import annotations

from typing import Any, Final

import dash
import dash_mantine_components as dmc
from dash import dcc, html
from dash.development.base_component import Component

from dashboard import ids
from dashboard.components.connection import lost_badge, lost_banner
from dashboard.components.elements import aria
from dashboard.components.problems import problem
from dashboard.visitor import Visitor

THEME: Final[dict[str, Any]] = {
    "primaryColor": "blue",
    "primaryShade": 8,
    "defaultRadius": "sm",
    "fontFamily": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
    "fontFamilyMonospace": "ui-monospace, 'SF Mono', Menlo, Consolas, monospace",
    "headings": {"fontWeight": "650"},
}

HEADER_HEIGHT: Final = 52
"""Pixels."""


_CLOCK_MILLISECONDS = 30_000


def shell(visitor: Visitor | None) -> Component:
    """Build the frame around the pages.

    Args:
        visitor: The user; None if not signed in.
    """
    return dmc.MantineProvider(
        id=ids.THEME,
        theme=THEME,
        defaultColorScheme="auto",
        children=[
            *_stores(),
            dmc.NotificationContainer(id=ids.NOTICES, position="bottom-right"),
            dmc.AppShell(
                [
                    dmc.AppShellHeader(_header(visitor), className="shell-header"),
                    dmc.AppShellMain(
                        [
                            html.Div(id=ids.BANNER, role="status"),
                            html.Div(lost_banner(), role="status"),
                            html.Main(dash.page_container, className="page"),
                        ]
                    ),
                ],
                header={"height": HEADER_HEIGHT},
                padding=0,
            ),
        ],
    )


def _stores() -> list[Component]:
    stores = (ids.LIVE_LINK, ids.LIVE_FRAMES, ids.LIVE_DECISIONS, ids.LIVE_CONTROL, ids.LIVE_BEAT)
    return [
        dcc.Location(id=ids.URL),
        *(dcc.Store(id=name) for name in (*stores, *ids.INCOMING.values())),
        dcc.Interval(id=ids.CLOCK, interval=_CLOCK_MILLISECONDS),
        dcc.Store(id=ids.CHART_WIDTH),
        dcc.Store(id=ids.RUN_RANGE),
    ]


def _header(visitor: Visitor | None) -> Component:
    navigation = dmc.Group(
        [
            dcc.Link("Stabilizer", href="/", className="brand"),
            dcc.Link("Runs", href="/", className="nav-link"),
            dcc.Link("Control", href="/control", className="nav-link"),
        ],
        gap="md",
        wrap="nowrap",
    )
    state = dmc.Group(
        [
            html.Div(id=ids.ARMED_BADGE),
            html.Div(id=ids.LINK_BADGE),
            lost_badge(),
            dmc.ColorSchemeToggle(
                lightIcon=html.Span("\u2600\ufe0e", **aria(hidden="true")),
                darkIcon=html.Span("\u263e\ufe0e", **aria(hidden="true")),
                variant="subtle",
                color="gray",
                size="md",
                **aria(label="Switch between light and dark"),
            ),
            _user(visitor),
        ],
        gap="xs",
        wrap="nowrap",
        className="shell-state",
    )
    return dmc.Group([navigation, state], justify="space-between", wrap="nowrap", h="100%", px="md")


def _user(visitor: Visitor | None) -> Component:
    if visitor is None:
        return html.A("Sign in", href="/signin", className="nav-link")
    if visitor.session is None:
        return html.Span(visitor.name, className="user", title="Your name in the audit log")
    return dmc.Menu(
        [
            dmc.MenuTarget(
                dmc.Button(
                    visitor.name, variant="subtle", color="gray", size="compact-sm", maw="9rem"
                )
            ),
            dmc.MenuDropdown(
                html.Form(
                    html.Button("Sign out", type="submit", className="menu-button"),
                    method="post",
                    action="/signout",
                )
            ),
        ]
    )


def not_found(**_: object) -> Component:
    """Build the page for an unknown address."""
    return problem(
        "Page not found",
        "Check the address, or start from the list of runs.",
    )
