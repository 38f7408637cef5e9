"""The collector as a process: a socket, a server, an orderly end."""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from stabilizer.clock import Clock
from stabilizer.collector.api.app import create_app
from stabilizer.collector.services.change_feed import ChangeFeed
from stabilizer.listening import listen, orderly_signals, url_of
from stabilizer.settings import CollectorSettings

logger = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 75
"""Longer than the agent's longest silence, so that a job keeps its connection."""


class CollectorServer(uvicorn.Server):
    """Reports when it serves, and ends long polls before it waits for open requests.

    Args:
        config: Of uvicorn.
        feed: Holds the requests that wait in the app.
        on_ready: Called once when requests are answered.
    """

    def __init__(
        self, config: uvicorn.Config, feed: ChangeFeed, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._feed = feed
        self._on_ready = on_ready
        self.has_served = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then call `on_ready`."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the long polls first: uvicorn waits for requests before it ends the app."""
        self.has_served = True
        self._feed.close()
        await super().shutdown(sockets)


def run_server(settings: CollectorSettings, clock: Clock, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then end what is under way and return.

    Args:
        settings: Surroundings.
        clock: Source of time.
        on_ready: Called once with the real URL when requests are answered.

    Raises:
        ConfigurationError: Settings, rules or address cannot be used.
        StorageError: The database cannot be opened, or another collector holds it.
    """
    listener = listen(settings.host, settings.port)
    try:
        url = url_of(listener)
        app = create_app(settings, clock)
        server = _build_server(app, settings, lambda: on_ready(url))
        with orderly_signals(uvicorn.server.HANDLED_SIGNALS, lambda: server.has_served):
            server.run(sockets=[listener])
    finally:
        listener.close()
    logger.info("ended")


def _build_server(
    app: FastAPI, settings: CollectorSettings, on_ready: Callable[[], None]
) -> CollectorServer:
    config = uvicorn.Config(
        app,
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_seconds),
    )
    return CollectorServer(config, app.state.services.feed, on_ready)
