"""Who asks: known to every part of a request without being handed through all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from pydantic import SecretStr


@dataclass(frozen=True, kw_only=True, slots=True)
class Visitor:
    """A person at a page."""

    name: str
    """As the audit log will tell it."""
    token: SecretStr | None = None
    """For the collector; None where it wants none."""
    session: str | None = None
    """Id of the session; None for one who need not sign in."""


_current: ContextVar[Visitor | None] = ContextVar("dashboard_visitor", default=None)


def current_visitor() -> Visitor | None:
    """Return who made the request or opened the connection; None: nobody who may ask anything."""
    return _current.get()


@contextmanager
def visited_by(visitor: Visitor | None) -> Iterator[None]:
    """Let everything inside, and every task started inside, be asked by this visitor."""
    token = _current.set(visitor)
    try:
        yield
    finally:
        _current.reset(token)
