"""Documents that a person has taken out of the stream.

A file of JSON lines, each `{"sample_id": "web/part-0.parquet:7"}` or `{"positions": [96, 104]}`
(from, to, without the end); other keys are remarks. A document is left out wherever it would come;
a position is left out in a stream of that seed and mixture: another document comes there instead.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import SEEK_END
from pathlib import Path
from typing import IO, Any

from stabilizer.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Quarantine:
    """What is left out."""

    sample_ids: frozenset[str] = frozenset()
    """Documents."""
    positions: tuple[tuple[int, int], ...] = ()
    """Windows of positions, [from, to), sorted and apart from each other."""

    def holds(self, position: int, sample_id: str) -> bool:
        """Whether this document must not be read, here or anywhere."""
        return sample_id in self.sample_ids or self.holds_position(position)

    def holds_position(self, position: int) -> bool:
        """Whether what belongs to this position must not be read."""
        place = bisect_right(self.positions, position, key=lambda window: window[0])
        return place > 0 and position < self.positions[place - 1][1]


def read_quarantine(path: Path) -> Quarantine:
    """Read a quarantine file.

    Raises:
        ConfigurationError: It cannot be read, or a line says something else; with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"data.quarantine: {path} cannot be read: {error}") from error
    sample_ids: set[str] = set()
    positions: list[tuple[int, int]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content: Any = json.loads(line)
            if "sample_id" in content:
                sample_ids.add(_sample_id(content["sample_id"]))
            else:
                positions.append(_window(content["positions"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"data.quarantine: {path}:{number}: {line[:80]!r} cannot be used; allowed: "
                '{"sample_id": "..."} or {"positions": [from, to]}'
            ) from error
    return Quarantine(frozenset(sample_ids), tuple(_merged(positions)))


def add_to_quarantine(path: Path, sample_ids: Iterable[str], *, remark: str) -> list[str]:
    """Append documents to a quarantine file, once each; create it if absent.

    Args:
        path: The file.
        sample_ids: Which documents.
        remark: Why, for people.

    Returns:
        Those that were not there before.

    Raises:
        ConfigurationError: The file holds something else, or cannot be written.
    """
    known = read_quarantine(path).sample_ids if path.exists() else frozenset()
    new = [name for name in dict.fromkeys(sample_ids) if name not in known]
    lines = "".join(json.dumps({"sample_id": name, "remark": remark}) + "\n" for name in new)
    try:
        with path.open("a+b") as file:  # ends of lines as they are
            file.write(_end_of_line(file) + lines.encode("utf-8") if new else b"")
    except OSError as error:
        raise ConfigurationError(f"data.quarantine: {path} cannot be written: {error}") from error
    return new


def _end_of_line(file: IO[bytes]) -> bytes:
    """Return what must stand before a new line: an end of the last one, if a person left none."""
    if not file.seek(0, SEEK_END):
        return b""
    file.seek(-1, SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"


def _merged(windows: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(windows):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _sample_id(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a sample_id is a text")
    return value


def _window(value: Sequence[object]) -> tuple[int, int]:
    start, end = value
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end:
        raise ValueError("a window is two positions, the first below the second")
    return start, end
