"""Who is signed in. Kept in memory: the browser holds a random number and never a token."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from pydantic import SecretStr

from dashboard.visitor import Visitor
from stabilizer.clock import Clock

_MAX_SESSIONS: Final = 10_000
"""More people than these at one dashboard; beyond, the oldest session ends."""


@dataclass(frozen=True, slots=True)
class _Session:
    visitor: Visitor
    ends: float
    """By the monotonic clock."""


class Sessions:
    """Sessions of this process: a restart ends them all.

    Args:
        clock: Measures their time.
        hours: How long one lasts.
    """

    def __init__(self, clock: Clock, hours: float) -> None:
        self._clock = clock
        self._seconds = hours * 3600.0
        self._by_id: dict[str, _Session] = {}
        self._unused: set[str] = set()
        self._num_taken_up = 0

    @property
    def num_taken_up(self) -> int:
        """How many sessions a browser has come with so far; grows when one is used first."""
        return self._num_taken_up

    @property
    def seconds(self) -> float:
        """How long a session lasts."""
        return self._seconds

    def begin(self, name: str, token: SecretStr | None) -> str:
        """Sign a person in; returns the session's id, which is the browser's only secret."""
        self._drop_ended()
        if len(self._by_id) >= _MAX_SESSIONS:
            self.end(next(iter(self._by_id)))
        session = secrets.token_urlsafe(32)
        visitor = Visitor(name=name, token=token, session=session)
        self._by_id[session] = _Session(visitor, self._clock.monotonic() + self._seconds)
        self._unused.add(session)
        return session

    def visitor(self, session: str | None) -> Visitor | None:
        """Return who a session belongs to; None if there is none, or its time is over."""
        found = self._by_id.get(session or "")
        if found is None or found.ends <= self._clock.monotonic():
            return None
        if session in self._unused:
            self._unused.discard(session)
            self._num_taken_up += 1
        return found.visitor

    def end(self, session: str | None) -> None:
        """Sign a person out. Twice is harmless."""
        self._by_id.pop(session or "", None)
        self._unused.discard(session or "")

    def _drop_ended(self) -> None:
        now = self._clock.monotonic()
        self._by_id = {key: one for key, one in self._by_id.items() if one.ends > now}
        self._unused &= self._by_id.keys()
