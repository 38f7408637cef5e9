"""Renews only what has changed: what is replaced loses focus, place and the click upon it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from dash import no_update

from dashboard.components.elements import timeless


def fingerprint(text: str) -> str:
    """Name a text in few characters."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def only_changed(
    names: Sequence[str],
    parts: Sequence[Any],
    known: Mapping[str, str],
    stable: Sequence[Any] | None = None,
) -> tuple[list[Any], dict[str, str]]:
    """Leave out the parts that a page has already.

    Args:
        names: Of the parts of the page.
        parts: What they show, in the same order.
        known: Fingerprints of what the page has, by name.
        stable: What decides whether a part is the same, where that is not the part itself.

    Returns:
        The parts, no update in place of those that are known, and the fingerprints of all.
    """
    digests = {
        name: fingerprint(timeless(part)) for name, part in zip(names, stable or parts, strict=True)
    }
    changed = [
        no_update if known.get(name) == digest else part
        for part, (name, digest) in zip(parts, digests.items(), strict=True)
    ]
    return changed, digests
