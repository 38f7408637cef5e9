"""Rows of training logs, and the interface of their readers.

A reader is an incremental parser: bytes in, rows out. The same parser reads a finished file in
chunks and follows a file that is still growing, in bounded memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

MAX_LINE_BYTES: Final = 16 * 2**20
"""A longer line is no line of a log; it is skipped."""

STEP_COLUMNS: Final = (
    "train/global_step",
    "trainer/global_step",
    "global_step",
    "step",
    "iteration",
    "iter",
    "_step",
)
"""Names of the column that holds the step, best first: `_step` of W&B counts calls of `log`."""
TIME_COLUMNS: Final = ("time", "timestamp", "_timestamp", "wall_time")
ATTEMPT_COLUMN: Final = "attempt"
IGNORED_COLUMNS: Final = frozenset({"", "epoch", "train/epoch", "_runtime", "index", "total_flos"})
"""Positions in another unit, and the index column of a data frame."""


@dataclass(frozen=True, slots=True, eq=False)
class LogRow:
    """The values of a log at one step.

    Args:
        step: Completed optimizer steps.
        columns: Names as in the log; the same object at every row where they do not change.
        values: Shape [N], one for each column; NaN and Inf are data.
        present: Shape [N]; None if everything was measured.
        attempt: As the log gives it; None if it does not.
        time: Seconds since the epoch; None if the log does not give it.
    """

    step: int
    columns: tuple[str, ...]
    values: npt.NDArray[np.float64]
    present: npt.NDArray[np.bool_] | None = None
    attempt: int | None = None
    time: float | None = None


@dataclass(slots=True)
class LogProblems:
    """Counts of irregularities in a log."""

    bad_lines: int = 0
    """Lines or records that could not be read; they are left out."""
    bad_cells: int = 0
    """Cells that are no number; they count as not measured."""
    truncated: int = 0
    """Files that end within a line or record; the part is left out."""
    duplicates: int = 0
    """Rows that repeat a series at the same step; the later value counts."""
    restarts: int = 0
    """Steps that went back: a new attempt begins there."""
    late: int = 0
    """Rows of an earlier step that repeat nothing; they are left out: the rules never go back."""
    left_out_series: int = 0
    """Columns beyond the limit, and columns that name a series again."""

    def add(self, other: LogProblems) -> None:
        """Add the counts of another file."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def __str__(self) -> str:
        counts = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in counts if count)


class LogParser(Protocol):
    """An incremental parser of one format."""

    problems: LogProblems

    def feed(self, data: bytes) -> Iterator[LogRow]:
        """Parse the next bytes of the file."""
        ...

    def close(self) -> Iterator[LogRow]:
        """Parse what is left: the file has ended."""
        ...


class LineParser:
    """Splits bytes into lines. A subclass parses a line."""

    def __init__(self) -> None:
        self.problems = LogProblems()
        self._rest = b""
        self._is_skipping = False

    def feed(self, data: bytes) -> Iterator[LogRow]:
        """Parse the lines that are complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self._is_skipping:  # the end of a line that was too long
                self._is_skipping = False
                continue
            yield from self._parse(line, is_last=False)
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest, self._is_skipping = b"", True
            self.problems.bad_lines += 1

    def close(self) -> Iterator[LogRow]:
        """Parse the last line, which has no end."""
        rest, self._rest = self._rest, b""
        if rest and not self._is_skipping:
            yield from self._parse(rest, is_last=True)

    def _parse(self, line: bytes, *, is_last: bool) -> Iterator[LogRow]:
        text = line.decode("utf-8", "replace").strip("\r\x00\ufeff")
        if text.strip():
            yield from self.parse_line(text, is_last=is_last)

    def parse_line(self, text: str, *, is_last: bool) -> Iterator[LogRow]:
        """Parse a line.

        Args:
            text: Without its end; not empty.
            is_last: It is the last of the file and has no end: it may be cut off.
        """
        raise NotImplementedError

    def reject(self, *, is_last: bool) -> None:
        """Count a line that cannot be read."""
        if is_last:
            self.problems.truncated += 1
        else:
            self.problems.bad_lines += 1


def parse_step(cell: object) -> int | None:
    """Parse a step: a whole number from 0; None if it is none."""
    try:
        number = float(cell)  # type: ignore[arg-type]  # TypeError is caught
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if math.isfinite(number) and 0 <= number < 2**53 else None


def parse_number(cell: object) -> float | None:
    """Parse a value; NaN and Inf are values. None if it is no number."""
    try:
        return float(cell)  # type: ignore[arg-type]  # TypeError is caught
    except (TypeError, ValueError, OverflowError):
        return None


def choose_column(names: Sequence[str], candidates: Sequence[str]) -> str | None:
    """Return the first candidate that is a column, ignoring case."""
    by_lower = {name.strip().lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in candidates if name in by_lower), None)
