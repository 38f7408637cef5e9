"""Logs what went wrong in a callback: Dash answers it with 500 and tells nobody."""

from __future__ import annotations

import logging

from dash.exceptions import PreventUpdate
from starlette.types import ASGIApp, Receive, Scope, Send

logger = logging.getLogger(__name__)


class ErrorLog:
    """ASGI middleware inside of Dash's own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through; an error is logged and goes on."""
        try:
            await self._app(scope, receive, send)
        except PreventUpdate:
            raise
        except Exception:
            logger.exception("%s failed", scope.get("path", scope["type"]))
            raise
