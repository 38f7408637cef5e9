"""JSON: lines of records (JSONL, W&B history), and the `trainer_state.json` of transformers.

A record's numbers are its values; "NaN", "Infinity" and "-Infinity" count as numbers also as texts,
as W&B writes them. Nested records are read as `outer/inner`. Texts, lists and truth values are no
series. The summary that transformers writes at the end of a training is left out: its `train_loss`
is a mean over the run.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from stabilizer.logs.rows import (
    ATTEMPT_COLUMN,
    IGNORED_COLUMNS,
    MAX_LINE_BYTES,
    STEP_COLUMNS,
    TIME_COLUMNS,
    LineParser,
    LogProblems,
    LogRow,
    choose_column,
    parse_number,
    parse_step,
)

_WORDS: Final = frozenset({"nan", "inf", "-inf", "infinity", "-infinity", "+infinity"})
_SUMMARIES: Final = ("train_runtime", "train/train_runtime")
_NO_SERIES: Final = IGNORED_COLUMNS | set(STEP_COLUMNS) | set(TIME_COLUMNS) | {ATTEMPT_COLUMN}
_MAX_DEPTH: Final = 4
_HISTORY: Final = '"log_history"'


class RecordReader:
    """Turns records into rows. The column of the step is chosen once for a file."""

    def __init__(self) -> None:
        self._step_name: str | None = None
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}

    def row(self, record: Mapping[str, object]) -> LogRow | None:
        """Read a record; None if it has no step or no value."""
        flat = dict(_numbers(record, "", 0))
        if self._step_name is None:
            self._step_name = choose_column(list(flat), STEP_COLUMNS)
        step = parse_step(flat.get(self._step_name)) if self._step_name is not None else None
        if step is None or any(name in record for name in _SUMMARIES):
            return None
        values = {name: value for name, value in flat.items() if name.lower() not in _NO_SERIES}
        if not values:
            return None
        names = tuple(values)
        time = next((flat[name] for name in TIME_COLUMNS if name in flat), None)
        return LogRow(
            step=step,
            columns=self._names.setdefault(names, names),
            values=np.array([*values.values()], np.float64),
            attempt=parse_step(flat.get(ATTEMPT_COLUMN)),
            time=time,
        )


def _numbers(record: Mapping[str, object], prefix: str, depth: int) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, dict):
            if depth < _MAX_DEPTH:
                yield from _numbers(value, f"{prefix}{name}/", depth + 1)
        elif isinstance(value, int | float) or (
            isinstance(value, str) and value.strip().lower() in _WORDS
        ):
            number = parse_number(value)
            if number is not None:
                yield f"{prefix}{name}", number


class JsonLinesParser(LineParser):
    """Parses one record a line."""

    def __init__(self) -> None:
        super().__init__()
        self._reader = RecordReader()

    def parse_line(self, text: str, *, is_last: bool) -> Iterator[LogRow]:
        """Parse a record."""
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            self.reject(is_last=is_last)
            return
        row = self._reader.row(record)
        if row is not None:
            yield row


class TrainerStateParser:
    """Parses the `log_history` of a `trainer_state.json`, entry by entry."""

    def __init__(self) -> None:
        self.problems = LogProblems()
        self._reader = RecordReader()
        self._decoder = json.JSONDecoder()
        self._text = codecs.getincrementaldecoder("utf-8")("replace")
        self._buffer = ""
        self._is_inside = False
        self._is_done = False

    def feed(self, data: bytes) -> Iterator[LogRow]:
        """Parse the entries that are complete."""
        if self._is_done:
            return
        self._buffer += self._text.decode(data)
        if not self._is_inside and not self._enter():
            return
        while not self._is_done:
            self._buffer = self._buffer.lstrip(" \t\r\n,")
            if self._buffer.startswith("]"):
                self._is_done, self._buffer = True, ""
                return
            try:
                entry, end = self._decoder.raw_decode(self._buffer)
            except (ValueError, RecursionError):
                self._check_length()
                return
            self._buffer = self._buffer[end:]
            row = self._reader.row(entry) if isinstance(entry, dict) else None
            if row is not None:
                yield row

    def close(self) -> Iterator[LogRow]:
        """Count a file that was cut off."""
        self.problems.truncated += not self._is_done
        yield from ()

    def _enter(self) -> bool:
        before, found, after = self._buffer.partition(_HISTORY)
        if not found or "[" not in after:
            if not found:
                self._buffer = before[-len(_HISTORY) :]
            return False
        self._buffer = after.partition("[")[2]
        self._is_inside = True
        return True

    def _check_length(self) -> None:
        if len(self._buffer) > MAX_LINE_BYTES:
            self.problems.bad_lines += 1
            self._is_done, self._buffer = True, ""
