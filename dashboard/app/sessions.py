"""Sessions, kept in memory. The browser holds a random session id, never a token."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from pydantic import SecretStr

from dashboard.visitor import Visitor
from stabilizer.clock import Clock

_MAX_SESSIONS: Final = 10_000
"""Beyond this, the oldest session ends."""


@dataclass(frozen=True, slots=True)
class _Session:
    visitor: Visitor
    ends: float
    """On the monotonic clock."""


class Sessions:
    """Sessions of this process; a restart ends them all.

    Args:
        clock: Source of time.
        hours: Lifetime of a session.
    """

    def __init__(self, clock: Clock, hours: float) -> None:
        self._clock = clock
        self._seconds = hours * 3600.0
        self._by_id: dict[str, _Session] = {}
        self._unused: set[str] = set()
        self._num_taken_up = 0

    @property
    def num_taken_up(self) -> int:
        """Number of sessions that a browser has used at least once."""
        return self._num_taken_up

    @property
    def seconds(self) -> float:
        """Lifetime of a session."""
        return self._seconds

    def begin(self, name: str, token: SecretStr | None) -> str:
        """Start a session and return its id, the only secret that the browser holds."""
        self._drop_ended()
        if len(self._by_id) >= _MAX_SESSIONS:
            self.end(next(iter(self._by_id)))
        session = secrets.token_urlsafe(32)
        visitor = Visitor(name=name, token=token, session=session)
        self._by_id[session] = _Session(visitor, self._clock.monotonic() + self._seconds)
        self._unused.add(session)
        return session

    def visitor(self, session: str | None) -> Visitor | None:
        """Return the user of a session; None if it is unknown or expired."""
        found = self._by_id.get(session or "")
        if found is None or found.ends <= self._clock.monotonic():
            return None
        if session in self._unused:
            self._unused.discard(session)
            self._num_taken_up += 1
        return found.visitor

    def end(self, session: str | None) -> None:
        """End a session; unknown ids are ignored."""
        self._by_id.pop(session or "", None)
        self._unused.discard(session or "")

    def _drop_ended(self) -> None:
        now = self._clock.monotonic()
        self._by_id = {key: one for key, one in self._by_id.items() if one.ends > now}
        self._unused &= self._by_id.keys()
