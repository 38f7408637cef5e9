"""Times that pass: written once by the server, and kept true by the page itself (assets/times.js).

So that "3 min ago" never goes stale, and nothing need be drawn again only because time has passed.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from dash import html
from dash.development.base_component import Component

from dashboard.words.amounts import ago, left, moment, utc

_TEXT: Final = re.compile(r"Time\(children='[^']*'")


def since(at: datetime, now: datetime) -> Component:
    """Say how long ago something was, with the moment itself when the pointer rests on it."""
    return _time(ago(at, now), at, "time-ago")


def until(at: datetime, now: datetime) -> Component:
    """Say how much time is left."""
    return _time(left(at, now) or "a moment", at, "time-left-word")


def _time(text: str, at: datetime, name: str) -> Component:
    return html.Time(text, dateTime=utc(at).isoformat(), title=moment(at), className=name)


def timeless(part: object) -> str:
    """Write a part of a page in full, but for what the page keeps true by itself."""
    return _TEXT.sub("Time(", repr(part))
