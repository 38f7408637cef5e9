"""The formats that can be read, and which of them a file is in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stabilizer.errors import InvalidInputError
from stabilizer.logs.csv_table import CsvParser
from stabilizer.logs.rows import STEP_COLUMNS, LogParser, LogProblems, LogRow, choose_column

HEAD_BYTES: Final = 64 * 2**10
CHUNK_BYTES: Final = 2**18


@dataclass(frozen=True, slots=True)
class LogFormat:
    """A format.

    Args:
        name: As given on the command line.
        matches: Whether a file is in it, from its name and its first bytes.
        parser: Makes a parser for one file.
    """

    name: str
    matches: Callable[[Path, bytes], bool]
    parser: Callable[[], LogParser]


def _is_csv(path: Path, head: bytes) -> bool:
    del path
    first, _, _ = head.partition(b"\n")
    names = [name.strip('" ') for name in first.decode("utf-8", "replace").strip().split(",")]
    return len(names) > 1 and choose_column(names, STEP_COLUMNS) is not None


FORMATS: Final = {format_.name: format_ for format_ in (LogFormat("csv", _is_csv, CsvParser),)}
"""All formats by name, in the order in which a file is tried."""


def detect_format(path: Path, head: bytes) -> LogFormat | None:
    """Return the format of a file; None if it is in none."""
    return next((format_ for format_ in FORMATS.values() if format_.matches(path, head)), None)


def read_rows(
    path: Path, format_: LogFormat | None = None, problems: LogProblems | None = None
) -> Iterator[LogRow]:
    """Read a finished file, in bounded memory.

    Raises:
        InvalidInputError: It cannot be opened, or is in no format that is known.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            format_ = format_ or detect_format(path, head)
            if format_ is None:
                raise InvalidInputError(
                    f"{path} is in no format that can be read",
                    field="path",
                    value=str(path),
                    allowed=", ".join(FORMATS),
                )
            parser = format_.parser()
            data = head
            while data:
                yield from parser.feed(data)
                data = file.read(CHUNK_BYTES)
            yield from parser.close()
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be read: {error.strerror or error}", field="path", value=str(path)
        ) from error
    if problems is not None:
        problems.add(parser.problems)
