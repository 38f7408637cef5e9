"""What every server process does around serving: bind a socket, tell the address, end orderly."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from stabilizer.errors import ConfigurationError

_BACKLOG: Final = 2048
"""Connections that may wait to be accepted: a whole cluster may start at once."""


def listen(host: str, port: int) -> socket.socket:
    """Bind before anything else is begun, so that a taken port costs nothing.

    Args:
        host: Name or address.
        port: 0 takes any free one.

    Raises:
        ConfigurationError: The address cannot be bound.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
        # asyncio turns Nagle's algorithm off only where the protocol is named, which
        # socket.create_server does not; every answer would come 40 ms late.
        listener = socket.socket(family, kind, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on host {host!r}, port {port}: {error.strerror or error}"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the address at which a bound socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def write_ready_file(path: Path, url: str) -> None:
    """Write the address in one piece: who waits for the file never reads half of it.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    draft = path.with_name(path.name + ".draft")
    try:
        draft.write_text(url + "\n", encoding="ascii")
        draft.replace(path)
    except OSError as error:
        raise ConfigurationError(f"ready file {str(path)!r} cannot be written: {error}") from error


@contextmanager
def orderly_signals(
    numbers: Collection[signal.Signals], has_served: Callable[[], bool]
) -> Iterator[None]:
    """Let a signal after an orderly end do nothing.

    uvicorn raises the signal that ended it once more when it is done; with the handlers of Python
    an orderly end would look like a crash.

    Args:
        numbers: The signals that end the server.
        has_served: Whether the server has ended what it did; before that a signal ends the process.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        if not has_served():
            raise SystemExit(128 + number)

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
