"""The version of the contract between job and collector."""

from __future__ import annotations

from typing import Final

PROTOCOL_VERSION: Final = 1
"""Raised when a message changes its meaning; new optional fields do not raise it."""

MIN_PROTOCOL_VERSION: Final = 1
"""The oldest version that this collector still understands."""
