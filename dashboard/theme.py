"""Colours, fonts and sizes of the pages; light and dark are Mantine's own."""

from __future__ import annotations

from typing import Any, Final

THEME: Final[dict[str, Any]] = {
    "primaryColor": "blue",
    "primaryShade": {"light": 7, "dark": 5},
    "defaultRadius": "sm",
    "fontFamily": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
    "fontFamilyMonospace": "ui-monospace, 'SF Mono', Menlo, Consolas, monospace",
    "headings": {"fontWeight": "650"},
}

HEADER_HEIGHT: Final = 52
"""Pixels."""
