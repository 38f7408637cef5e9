"""How the page stands to the collector: a badge always, a banner when a person must know."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from dash import html
from dash.development.base_component import Component

from dashboard.components.badges import Connection, connection_badge
from dashboard.words.amounts import clock


def link_badge(link: Mapping[str, Any] | None) -> Component:
    """Build the badge of a link.

    Args:
        link: What the store of the link holds: `link` and `since`; None before the first news.
    """
    known = link or {}
    state = {
        "live": Connection.LIVE,
        "away": Connection.AWAY,
        "refused": Connection.EXPIRED,
        "signed_out": Connection.EXPIRED,
    }.get(str(known.get("link")), Connection.CATCHING_UP)
    return connection_badge(state, since=_since(known))


def link_banner(link: Mapping[str, Any] | None, path: str) -> Component | None:
    """Say what a page cannot do any more, and what to do; None where all is well.

    Args:
        link: As above.
        path: Of the page, to come back to after signing in.
    """
    known = link or {}
    state = known.get("link")
    if state in ("refused", "signed_out"):
        way = f"/signin?ended=true&next={quote(path, safe='')}"
        text = (
            "Your session has ended, or the collector does not take its token. "
            "This page shows what it knew. "
        )
        return html.Div([text, html.A("Sign in", href=way)], className="banner banner-bad")
    if state == "away":
        since = _since(known)
        when = "" if since is None else f" since {clock(since)} UTC"
        return html.Div(
            f"The collector does not answer{when}. This page shows what it knew and goes on by "
            "itself. Training jobs go on, and send later what they measure now.",
            className="banner banner-warn",
        )
    return None


def _since(known: Mapping[str, Any]) -> datetime | None:
    try:
        return datetime.fromisoformat(str(known.get("since")))
    except ValueError:
        return None
