"""The git revision of the code that is run, read from the files of the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_HASH: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")


def git_revision(start: Path) -> str | None:
    """Find the commit that is checked out in or above a folder; None if there is none to read."""
    for folder in (start, *start.parents):
        entry = folder / ".git"
        if entry.exists():
            return _read_head(entry)
    return None


def _read_head(entry: Path) -> str | None:
    try:
        if entry.is_file():  # a worktree or submodule points to its folder
            entry = entry.parent / entry.read_text().removeprefix("gitdir:").strip()
        head = (entry / "HEAD").read_text().strip()
        return head if _HASH.match(head) else _resolve(entry, head.removeprefix("ref:").strip())
    except (OSError, UnicodeDecodeError):
        return None


def _resolve(entry: Path, reference: str) -> str | None:
    common = entry / "commondir"
    shared = (entry / common.read_text().strip()) if common.exists() else entry
    for folder in (entry, shared):
        if (folder / reference).is_file():
            text = (folder / reference).read_text().strip()
            return text if _HASH.match(text) else None
    packed = shared / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    found = (line.split()[0] for line in lines if line.endswith(f" {reference}"))
    return next((text for text in found if _HASH.match(text)), None)
