"""The dashboard as a process: a socket, a server, an orderly end."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

import uvicorn
from fastapi import FastAPI

from dashboard.app.factory import create_app
from dashboard.settings import DashboardSettings
from stabilizer.clock import Clock
from stabilizer.listening import listen, orderly_signals, url_of

_GRACE_SECONDS = 3
"""Open pages hold a connection for ever: they are cut off after this."""
_MAX_MESSAGE_BYTES: Final = 2**16
"""A page sends over its WebSocket which callback it asks for and its own path: some hundred bytes,
and never more than the address of a page may have. Without a bound it would be 16 MiB."""


class DashboardServer(uvicorn.Server):
    """Says when it serves."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self.has_served = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Note that from here on the end is an orderly one."""
        self.has_served = True
        await super().shutdown(sockets)


def run_server(settings: DashboardSettings, clock: Clock, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: Surroundings.
        clock: Source of time.
        on_ready: Called once with the real URL when requests are answered.

    Raises:
        ConfigurationError: The address cannot be used.
    """
    listener = listen(settings.host, settings.port)
    try:
        url = url_of(listener)
        server = DashboardServer(_config(create_app(settings, clock)), lambda: on_ready(url))
        with orderly_signals(uvicorn.server.HANDLED_SIGNALS, lambda: server.has_served):
            server.run(sockets=[listener])
    finally:
        listener.close()


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws_max_size=_MAX_MESSAGE_BYTES,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
