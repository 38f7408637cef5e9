"""The user of the current request, kept in a context variable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from pydantic import SecretStr


@dataclass(frozen=True, kw_only=True, slots=True)
class Visitor:
    """The user of a page."""

    name: str
    """Recorded in the audit log."""
    token: SecretStr | None = None
    """Collector token; None if the collector requires none."""
    session: str | None = None
    """Session id; None where no sign-in is required."""


_current: ContextVar[Visitor | None] = ContextVar("dashboard_visitor", default=None)


def current_visitor() -> Visitor | None:
    """Return the user of the current request or connection; None if not signed in."""
    return _current.get()


@contextmanager
def visited_by(visitor: Visitor | None) -> Iterator[None]:
    """Set the visitor for the enclosed code and for tasks started in it."""
    token = _current.set(visitor)
    try:
        yield
    finally:
        _current.reset(token)
