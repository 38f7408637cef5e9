"""CSV: the project's own format, and exports of Weights & Biases and other tools.

The first line names the columns; one of them is the step. An empty cell is a value that was not
measured. A row that is too short lacks its last cells; the last row of a file, if it has no end, is
left out when it is too short, since it was cut off.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Final

import numpy as np

from stabilizer.errors import InvalidInputError
from stabilizer.logs.rows import (
    ATTEMPT_COLUMN,
    IGNORED_COLUMNS,
    STEP_COLUMNS,
    TIME_COLUMNS,
    LineParser,
    LogRow,
    choose_column,
    parse_number,
    parse_step,
)

_WANDB = re.compile(r"(?P<run>.+?) - (?P<name>.+?)(?P<bound>__MIN|__MAX)?\Z")
"""A column of a chart's export: `run name - train/loss`, and the edges of its band."""
_NAMES_OF_NOTHING: Final = frozenset({"", "null", "none", "na", "n/a", "-"})


def runs_of_header(line: str) -> list[str]:
    """Return the runs of a W&B chart's export; empty for other files."""
    names = [name.strip() for name in next(csv.reader([line]), [])]
    special = set(STEP_COLUMNS) | set(TIME_COLUMNS)
    matches = [_WANDB.match(name) for name in names if name.lower() not in special]
    if not matches or not all(matches):
        return []
    return sorted({match["run"] for match in matches if match})


class CsvParser(LineParser):
    """Parses CSV with a header.

    Args:
        run: The run to read of a W&B chart's export that has several.
    """

    def __init__(self, run: str | None = None) -> None:
        super().__init__()
        self._run = run
        self._header: _Header | None = None

    def parse_line(self, text: str, *, is_last: bool) -> Iterator[LogRow]:
        """Parse the header, then rows.

        Raises:
            InvalidInputError: The header has no step, or columns of several runs.
        """
        cells = text.split(",") if '"' not in text else next(csv.reader([text]))
        header = self._header
        if header is None:
            self._header = _Header(cells, self._run)
            return
        if len(cells) > len(header.names) or (is_last and len(cells) < len(header.names)):
            self.reject(is_last=is_last)
            return
        if len(cells) < len(header.names):
            self.problems.bad_lines += 1
            cells += [""] * (len(header.names) - len(cells))
        step = parse_step(cells[header.step])
        if step is None:
            if cells != header.names:  # a header in the middle: a file that was written on
                self.reject(is_last=is_last)
            return
        yield self._row(header, step, cells)

    def _row(self, header: _Header, step: int, cells: list[str]) -> LogRow:
        values, present = self._read(header.choose(cells))
        attempt = None if header.attempt is None else parse_step(cells[header.attempt])
        time = None if header.time is None else parse_number(cells[header.time])
        return LogRow(step, header.columns, values, present, attempt, time)

    def _read(self, cells: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
        """Read cells: of numbers alone, of numbers and empty cells, or one by one."""
        num_cells = len(cells)
        try:
            if all(cells):
                return np.fromiter(map(float, cells), np.float64, num_cells), None
            present = np.fromiter(map(bool, cells), np.bool_, num_cells)
            values = np.zeros(num_cells)
            values[present] = np.fromiter(map(float, filter(None, cells)), np.float64)
        except ValueError:
            return self._sparse(cells)
        return values, present

    def _sparse(self, cells: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        values, present = np.zeros(len(cells)), np.zeros(len(cells), np.bool_)
        for index, cell in enumerate(cells):
            if not cell:
                continue
            number = parse_number(cell)
            if number is not None:
                values[index], present[index] = number, True
            elif cell.strip().lower() not in _NAMES_OF_NOTHING:
                self.problems.bad_cells += 1
        return values, present


class _Header:
    """The columns of a file."""

    def __init__(self, names: list[str], run: str | None) -> None:
        self.names = names
        self._run = run
        step = choose_column(names, STEP_COLUMNS)
        if step is None:
            raise InvalidInputError(
                f"the first line names no step: {', '.join(names)[:200]!r}",
                field="header",
                value=names[:20],
                allowed=f"a column {', '.join(STEP_COLUMNS)}",
            )
        self.step = names.index(step)
        time = choose_column(names, TIME_COLUMNS)
        self.time = None if time is None else names.index(time)
        self.attempt = names.index(ATTEMPT_COLUMN) if ATTEMPT_COLUMN in names else None
        kept = self._series(names)
        indices = [index for index, _ in kept]
        self.choose: Callable[[list[str]], Sequence[str]] = (
            itemgetter(*indices)
            if len(indices) > 1
            else lambda cells: [cells[index] for index in indices]
        )
        self.columns = tuple(name for _, name in kept)

    def _series(self, names: list[str]) -> list[tuple[int, str]]:
        special = {self.step, self.time, self.attempt}
        steps = set(STEP_COLUMNS)
        kept = [
            (index, name.strip())
            for index, name in enumerate(names)
            if index not in special and name.strip().lower() not in IGNORED_COLUMNS | steps
        ]
        matches = [_WANDB.match(name) for _, name in kept]
        if not kept or not all(matches):
            return kept
        runs = sorted({match["run"] for match in matches if match})
        if len(runs) > 1 and self._run is None:
            raise InvalidInputError(
                f"the file holds {len(runs)} runs: {', '.join(runs)[:200]}",
                field="header",
                value=runs[:20],
                allowed="the columns of one run",
            )
        return [
            (index, match["name"])
            for (index, _), match in zip(kept, matches, strict=True)
            if match and match["bound"] is None and self._run in {None, match["run"]}
        ]
