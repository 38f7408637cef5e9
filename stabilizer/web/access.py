"""Checks of the Host and Origin headers against web pages that attack a local server.

A server on loopback may need no credentials, yet any web page can make a browser send requests to
it. The Host check stops DNS rebinding: a page that resolves its own name to 127.0.0.1 still sends
its own name. The Origin header names the page that made a request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import SplitResult, urlsplit

from stabilizer.settings import is_loopback

_HOST: Final = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::\d{1,5})?\Z")


class HostCheck:
    """Decides which Host headers a server accepts.

    Args:
        on_loopback: The server listens on loopback only.
        allowed_hosts: Further names, without port. With any of them the check also holds for a
            server that other machines can reach; without, such a server accepts every name.
    """

    def __init__(self, *, on_loopback: bool, allowed_hosts: Iterable[str]) -> None:
        self._allowed = frozenset(name.lower() for name in allowed_hosts)
        self._is_on = on_loopback or bool(self._allowed)

    def accepts(self, host: str) -> bool:
        """Return whether a Host header names this server.

        A name of loopback always does: a browser cannot be made to send it to another machine.
        """
        if not self._is_on:
            return True
        match = _HOST.match(host)
        name = match["name"].lower() if match else ""
        return is_loopback(name) or name in self._allowed


def origin_host(origin: str) -> str | None:
    """Return host and port of an Origin header in lower case; None if it is malformed."""
    parts = _split(origin)
    return None if parts is None else parts.netloc.lower()


def is_loopback_origin(origin: str) -> bool:
    """Return whether the page of an Origin header was served by this machine."""
    parts = _split(origin)
    return parts is not None and parts.hostname is not None and is_loopback(parts.hostname)


def _split(origin: str) -> SplitResult | None:
    try:
        return urlsplit(origin)
    except ValueError:
        return None
