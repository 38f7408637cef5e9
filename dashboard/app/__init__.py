"""The dashboard as an ASGI application and as a process."""

from dashboard.app.factory import create_app, run_server

__all__ = ["create_app", "run_server"]
