"""An HTTP connection of http.client under one deadline for a whole exchange.

A socket's own timeout starts again with every byte, so that a server which drips one byte a second
holds a plain connection for hours. Here every wait is a slice of what is left of the exchange.
"""

from __future__ import annotations

import http.client
import io
import socket
from collections.abc import Callable
from dataclasses import dataclass

from stabilizer.clock import Clock
from stabilizer.errors import TelemetryError

_SLICE_SECONDS = 0.05
"""How soon a cancelled exchange is noticed."""
_SEND_BYTES = 64 * 1024


@dataclass(slots=True)
class Guard:
    """The deadline of one exchange, and who may break it off."""

    clock: Clock
    deadline: float
    """In the clock's monotonic seconds."""
    is_cancelled: Callable[[], bool]

    def next_slice(self) -> float:
        """Return how many seconds to wait at most before asking again.

        Raises:
            TelemetryError: Time is up, code `read_timeout`; or broken off, code `cancelled`.
        """
        left = self.deadline - self.clock.monotonic()
        if left <= 0:
            raise TelemetryError("the collector did not answer in time", code="read_timeout")
        if self.is_cancelled():
            raise TelemetryError("the exchange was broken off", code="cancelled")
        return min(left, _SLICE_SECONDS)


class _GuardedRaw(io.RawIOBase):
    """The bytes of a socket, read under a guard."""

    def __init__(self, sock: socket.socket, held: io.IOBase, guard: Guard) -> None:
        self._sock = sock
        self._held = held  # keeps the descriptor open after the connection has let go of it
        self._guard = guard

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # always a memoryview
        while True:
            self._sock.settimeout(self._guard.next_slice())
            try:
                return self._sock.recv_into(buffer)
            except TimeoutError:
                continue

    def close(self) -> None:
        if not self.closed:
            self._held.close()
        super().close()


class _GuardedResponse(http.client.HTTPResponse):
    """A response read under a guard."""

    def __init__(self, sock: socket.socket, guard: Guard, method: str | None) -> None:
        super().__init__(sock, method=method)
        self.fp = io.BufferedReader(_GuardedRaw(sock, self.fp.detach(), guard))


class GuardedConnection(http.client.HTTPConnection):
    """A plain connection; set `guard` before every exchange."""

    guard: Guard

    def response_class(  # type: ignore[override]  # http.client only ever calls it
        self,
        sock: socket.socket,
        debuglevel: int = 0,  # noqa: ARG002  the caller's signature
        method: str | None = None,
    ) -> http.client.HTTPResponse:
        """Build the response of the present exchange."""
        return _GuardedResponse(sock, self.guard, method)

    def send(self, data: bytes) -> None:  # type: ignore[override]  # we send bytes only
        """Send all bytes before the deadline; connect first where needed."""
        if self.sock is None:
            self.connect()
        rest = memoryview(data)
        while rest:
            self.sock.settimeout(self.guard.next_slice())
            try:
                sent = self.sock.send(rest[:_SEND_BYTES])
            except TimeoutError:
                continue
            rest = rest[sent:]


class GuardedTlsConnection(GuardedConnection, http.client.HTTPSConnection):
    """A connection over TLS."""
