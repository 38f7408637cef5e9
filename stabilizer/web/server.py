"""A web server as a process: bind a socket, announce the address, shut down in order."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import HANDLED_SIGNALS

from stabilizer.errors import ConfigurationError

_BACKLOG: Final = 2048
"""Connections waiting to be accepted: a whole cluster may start at once."""


class Server(uvicorn.Server):
    """A uvicorn server with a callback at its start and one before its shutdown.

    Args:
        config: Configuration of uvicorn.
        on_ready: Called once when the server accepts requests.
        on_shutdown: Called before the server waits for open requests; must end those that would
            not end by themselves. uvicorn notifies the app only after the wait.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        on_ready: Callable[[], None],
        on_shutdown: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._on_shutdown = on_shutdown
        self.is_done = False
        """The shutdown has begun; a signal need not end the process any more."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then announce it."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the requests that wait, then all others."""
        self.is_done = True
        if self._on_shutdown is not None:
            self._on_shutdown()
        await super().shutdown(sockets)


def run(
    app: ASGIApp,
    listener: socket.socket,
    on_ready: Callable[[str], None],
    on_shutdown: Callable[[], None] | None = None,
    **options: Any,  # noqa: ANN401  those of uvicorn
) -> None:
    """Serve until SIGTERM or SIGINT, then end open requests and return.

    Args:
        app: The application.
        listener: The bound socket; see `listen`.
        on_ready: Called once with the URL when the server accepts requests.
        on_shutdown: See `Server`.
        options: Further options of `uvicorn.Config`.
    """
    config = uvicorn.Config(
        app,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        **options,
    )
    url = url_of(listener)
    server = Server(config, lambda: on_ready(url), on_shutdown)
    with orderly_signals(HANDLED_SIGNALS, lambda: server.is_done):
        server.run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket. Call it first, so that a taken port fails at once.

    Args:
        host: Name or address.
        port: 0 takes any free port.

    Raises:
        ConfigurationError: The address cannot be bound.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
        # asyncio disables Nagle's algorithm only for sockets that name their protocol, which
        # socket.create_server does not; every answer would be 40 ms late.
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
    """Return the URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def write_ready_file(path: Path, url: str) -> None:
    """Write the URL to a file atomically.

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
    numbers: Collection[signal.Signals], is_done: Callable[[], bool]
) -> Iterator[None]:
    """Ignore signals after an orderly shutdown.

    uvicorn raises the signal that ended it once more when it is done. With Python's own handlers an
    orderly shutdown would look like a crash.

    Args:
        numbers: The signals that end the server.
        is_done: Whether the shutdown has begun; before that a signal ends the process.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        if not is_done():
            raise SystemExit(128 + number)

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
