"""State of a page's connection to dashboard and collector, as a badge and a banner."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from dash import html
from dash.development.base_component import Component

from dashboard.components.elements import (
    BadgeStyle,
    Connection,
    Shape,
    badge,
    badge_style,
    connection_badge,
)
from dashboard.formatting import clock


def link_badge(link: Mapping[str, Any] | None) -> Component:
    """Build the badge of the link state.

    Args:
        link: Data of the link store: `link` and `since`; None before the first update.
    """
    known = link or {}
    if known.get("link") == "polled":
        return badge(
            BadgeStyle("teal", Shape.RING),
            "refreshes every 5 s",  # by assets/watch.js
            title="No live connection: not supported by this browser, or blocked by a proxy",
        )
    state = {
        "live": Connection.LIVE,
        "away": Connection.AWAY,
        "refused": Connection.EXPIRED,
        "signed_out": Connection.EXPIRED,
    }.get(str(known.get("link")), Connection.CATCHING_UP)
    return connection_badge(state, since=_since(known))


def lost_badge() -> Component:
    """Build the badge for a lost connection to the dashboard.

    It is always on the page; assets/watch.js makes it visible.
    """
    lost = badge(badge_style(Connection.AWAY), "dashboard not responding")
    return html.Div(lost, className="when-lost", role="status")


def lost_banner() -> Component:
    """Build the banner for a lost connection to the dashboard, likewise."""
    lost = (
        "Connection to the dashboard lost. Showing the last known state; reconnecting. "
        "Training is not affected."
    )
    return html.Div(
        [
            html.Span(lost, className="while-lost"),
            html.Span(
                ["The dashboard is back. ", html.A("Reload", href="")],
                className="while-back",
            ),
        ],
        className="banner banner-bad when-lost",
    )


def link_banner(link: Mapping[str, Any] | None, path: str) -> Component | None:
    """Build the banner of a broken link; None for a working one.

    Args:
        link: Data of the link store.
        path: Path of the page, to return to after sign-in.
    """
    known = link or {}
    state = known.get("link")
    if state in ("refused", "signed_out"):
        target = f"/signin?ended=true&next={quote(path, safe='')}"
        text = (
            "Your session has expired, or the collector rejects its token. "
            "Showing the last known state. "
        )
        return html.Div([text, html.A("Sign in", href=target)], className="banner banner-bad")
    if state == "away":
        since = _since(known)
        when = "" if since is None else f" since {clock(since)} UTC"
        return html.Div(
            f"Collector not responding{when}. Showing the last known state; reconnecting. "
            "Training continues; jobs deliver their data later.",
            className="banner banner-warn",
        )
    return None


def _since(known: Mapping[str, Any]) -> datetime | None:
    try:
        return datetime.fromisoformat(str(known.get("since")))
    except ValueError:
        return None
