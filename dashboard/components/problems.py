"""Error pages and error messages."""

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
from dashboard.text import capital

_TO_RUNS: Final = ("All runs", "/")


def problem(
    title: str, text: str, link: tuple[str, str] = _TO_RUNS, *, reload: bool = False
) -> Component:
    """Build a page that shows a problem.

    Args:
        title: The problem.
        text: Cause and remedy.
        link: Text and address of a link.
        reload: Load the linked page from the server.
    """
    name, address = link
    anchor = html.A(name, href=address) if reload else dcc.Link(name, href=address)
    return dmc.Stack(
        [dmc.Title(title, order=2), dmc.Text(text), html.Div(anchor, className="problem-link")],
        className="problem-page",
        gap="xs",
    )


def problem_of(error: DashboardError, path: str) -> Component:
    """Build the page of an error.

    Args:
        error: The error.
        path: Path of the page, to return to after sign-in.
    """
    if isinstance(error, SignInRequiredError):
        return problem(
            "Sign in to continue",
            "Your session has expired, or the collector rejects its token.",
            ("Sign in", f"/signin?ended=true&next={quote(path, safe='')}"),
            reload=True,
        )
    if isinstance(error, MissingError):
        return problem(
            "Run not found",
            "It may have been deleted, or the address is wrong.",
        )
    if isinstance(error, CollectorUnavailableError):
        return problem(
            "Collector not responding",
            f"{capital(error.message)}. This page loads as soon as it is back; training continues.",
            ("All runs", "/"),
        )
    return problem("Cannot show this page", capital(error.message))


def small_problem(error: DashboardError) -> Component:
    """Build the error message of one part of a page."""
    return dmc.Alert(capital(error.message), color="red", variant="light", title="Not available")
