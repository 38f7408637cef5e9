"""Replace only changed parts of a page: a replaced part loses focus, scroll and clicks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from dash import no_update

from dashboard.components.elements import timeless


def fingerprint(text: str) -> str:
    """Return a short hash of a text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def only_changed(
    names: Sequence[str],
    parts: Sequence[Any],
    known: Mapping[str, str],
    stable: Sequence[Any] | None = None,
) -> tuple[list[Any], dict[str, str]]:
    """Leave out the parts that have not changed.

    Args:
        names: Names of the parts.
        parts: Their content, in the same order.
        known: Fingerprints of the page's present content, by name.
        stable: Content to compare instead of `parts`, in the same order.

    Returns:
        The parts, with `no_update` for unchanged ones, and all fingerprints.
    """
    digests = {
        name: fingerprint(timeless(part)) for name, part in zip(names, stable or parts, strict=True)
    }
    changed = [
        no_update if known.get(name) == digest else part
        for part, (name, digest) in zip(parts, digests.items(), strict=True)
    ]
    return changed, digests
