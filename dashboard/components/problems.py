"""A page, or a part of one, that cannot be shown: what is wrong, and the way on."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import dash_mantine_components as dmc
from dash import dcc, html
from dash.development.base_component import Component

from dashboard.errors import (
    CollectorUnavailableError,
    DashboardError,
    MissingError,
    SignInRequiredError,
)

_TO_RUNS: Final = ("All runs", "/")


def problem(
    title: str, text: str, way: tuple[str, str] = _TO_RUNS, *, anew: bool = False
) -> Component:
    """Fill a page with what is wrong.

    Args:
        title: What is wrong.
        text: Why, and what can be done.
        way: Where to go from here: text and address.
        anew: Load the page of that address from the beginning.
    """
    link = html.A(way[0], href=way[1]) if anew else dcc.Link(way[0], href=way[1])
    return dmc.Stack(
        [dmc.Title(title, order=2), dmc.Text(text), html.Div(link, className="way-on")],
        className="problem-page",
        gap="xs",
    )


def problem_of(error: DashboardError, path: str) -> Component:
    """Fill a page with what an error means.

    Args:
        error: What was raised.
        path: Of the page, to come back to after signing in.
    """
    if isinstance(error, SignInRequiredError):
        return problem(
            "Sign in to continue",
            "Your session has expired, or the collector rejects its token.",
            ("Sign in", f"/signin?ended=true&next={quote(path, safe='')}"),
            anew=True,
        )
    if isinstance(error, MissingError):
        return problem(
            "Run not found",
            "It may have been deleted, or the address is wrong.",
        )
    if isinstance(error, CollectorUnavailableError):
        return problem(
            "Collector not responding",
            f"{error.message}. This page loads as soon as it is back; training continues.",
            ("All runs", "/"),
        )
    return problem("Cannot show this page", error.message)


def small_problem(error: DashboardError) -> Component:
    """Say in one place of a page what is wrong there."""
    return dmc.Alert(error.message, color="red", variant="light", title="Not available")
