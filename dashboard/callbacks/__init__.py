"""Wiring: a decorated function hands over to a plain one, since only plain ones can be tested."""

from dashboard.callbacks.register import register_callbacks

__all__ = ["register_callbacks"]
