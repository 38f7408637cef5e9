"""Supported formats, detection of a file's format, and the runs in files and folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from stabilizer.errors import ConfigurationError, InvalidInputError
from stabilizer.logs.csv_table import CsvParser, runs_of_header
from stabilizer.logs.json_records import JsonLinesParser, TrainerStateParser
from stabilizer.logs.rows import STEP_COLUMNS, LogParser, LogProblems, LogRow, choose_column
from stabilizer.logs.tensorboard import TensorBoardParser
from stabilizer.logs.text import PATTERNS, TextParser, TextPattern, own_pattern

HEAD_BYTES: Final = 2**20
"""Of which a format is recognised: some jobs print much before the first step."""
CHUNK_BYTES: Final = 2**18
_EVENT_FILE: Final = "tfevents"
_STATE_FILE: Final = "trainer_state.json"


@dataclass(frozen=True, slots=True)
class LogFormat:
    """A format.

    Args:
        name: As given on the command line.
        matches: Whether a file is in it, from its name and its first bytes.
        parser: Makes a parser for one file.
        is_document: The whole file is rewritten whenever it changes.
    """

    name: str
    matches: Callable[[Path, bytes], bool]
    parser: Callable[[], LogParser]
    is_document: bool = False


def _is_event_file(path: Path, head: bytes) -> bool:
    del head
    return _EVENT_FILE in path.name


def _is_trainer_state(path: Path, head: bytes) -> bool:
    is_object = head.lstrip().startswith(b"{")
    return is_object and (path.name == _STATE_FILE or b'"log_history"' in head)


def _is_json_lines(path: Path, head: bytes) -> bool:
    first = head.lstrip().partition(b"\n")[0]
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return path.suffix in {".jsonl", ".ndjson"} and first.startswith(b"{")


def _is_csv(path: Path, head: bytes) -> bool:
    del path
    first, _, _ = head.partition(b"\n")
    names = [name.strip('" \r\ufeff') for name in first.decode("utf-8", "replace").split(",")]
    return len(names) > 1 and choose_column(names, STEP_COLUMNS) is not None


def _has_lines(patterns: Sequence[TextPattern], path: Path, head: bytes) -> bool:
    del path
    if b"\x00" in head:
        return False
    text = head.decode("utf-8", "replace")
    return any(pattern.line.search(text) for pattern in patterns)


def _text_format(name: str, patterns: tuple[TextPattern, ...]) -> LogFormat:
    return LogFormat(name, partial(_has_lines, patterns), partial(TextParser, patterns))


FORMATS: Final = {
    format_.name: format_
    for format_ in (
        LogFormat("tensorboard", _is_event_file, TensorBoardParser),
        LogFormat("trainer_state", _is_trainer_state, TrainerStateParser, is_document=True),
        LogFormat("jsonl", _is_json_lines, JsonLinesParser),
        LogFormat("csv", _is_csv, CsvParser),
        *(_text_format(name, patterns) for name, patterns in PATTERNS.items()),
    )
}
"""All formats by name, in the order in which a file is tried."""


def choose_format(name: str | None, pattern: str | None) -> LogFormat | None:
    """Return the format that a user names; None to find it out for each file.

    Raises:
        ConfigurationError: There is no such format, or the pattern is none.
    """
    if pattern is not None:
        return _text_format("pattern", (own_pattern(pattern),))
    if name is not None and name not in FORMATS:
        raise ConfigurationError(f"format is {name!r}; allowed: {', '.join(FORMATS)}")
    return None if name is None else FORMATS[name]


def detect_format(path: Path, head: bytes) -> LogFormat | None:
    """Return the format of a file; None if it is in none."""
    return next((format_ for format_ in FORMATS.values() if format_.matches(path, head)), None)


@dataclass(frozen=True, slots=True)
class LogSource:
    """The log of one run.

    Args:
        name: Name of the run.
        paths: Its files in order; several event files of a folder are one run.
        format: Their format.
    """

    name: str
    paths: tuple[Path, ...]
    format: LogFormat

    def rows(self, problems: LogProblems | None = None) -> Iterator[LogRow]:
        """Read all files, in bounded memory.

        Raises:
            InvalidInputError: A file cannot be read.
        """
        for path in self.paths:
            yield from read_rows(path, self.format, problems)


def find_logs(paths: Sequence[Path], format_: LogFormat | None = None) -> list[LogSource]:
    """Find the runs in files and folders.

    Files of a folder that are no logs are left out; a file that is named must be one. Of the
    `trainer_state.json` in the checkpoints of a training the newest counts, since it holds all of
    the history.

    Raises:
        InvalidInputError: A path does not exist, or a file is in no format that is known.
    """
    found: list[LogSource] = []
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            found += _of_folder(files, format_)
        else:
            known = format_ or _detect(path)
            if known is None:
                raise _unknown(path)
            found.append(LogSource(_run_name(path, known), (path,), known))
    return _named_apart([part for source in found for part in _split(source)])


def _split(source: LogSource) -> Iterator[LogSource]:
    """Split a W&B chart's export into its runs."""
    runs: list[str] = []
    if source.format.name == "csv":
        with source.paths[0].open("rb") as file:
            runs = runs_of_header(file.readline(HEAD_BYTES).decode("utf-8", "replace").strip())
    if len(runs) < 2:
        yield source
        return
    for run in runs:
        format_ = replace(source.format, parser=partial(CsvParser, run))
        yield LogSource(run, source.paths, format_)


def _of_folder(files: Sequence[Path], format_: LogFormat | None) -> Iterator[LogSource]:
    groups: dict[tuple[str, Path], list[Path]] = {}
    formats: dict[str, LogFormat] = {}
    for file in files:
        known = format_ or _detect(file)
        if known is None:
            continue
        formats[known.name] = known
        key = file
        if known.name == "tensorboard":
            key = file.parent
        elif file.name == _STATE_FILE:
            key = _training_folder(file)
        groups.setdefault((known.name, key), []).append(file)
    for (name, _), members in groups.items():
        chosen = members
        if formats[name].is_document:
            chosen = [max(members, key=lambda file: (_checkpoint(file), str(file)))]
        yield LogSource(_run_name(chosen[0], formats[name]), tuple(chosen), formats[name])


def _detect(path: Path) -> LogFormat | None:
    try:
        with path.open("rb") as file:
            return detect_format(path, file.read(HEAD_BYTES))
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be read: {error.strerror or error}", field="path", value=str(path)
        ) from error


def _training_folder(file: Path) -> Path:
    return file.parents[1] if file.parent.name.startswith("checkpoint-") else file.parent


def _checkpoint(file: Path) -> int:
    number = file.parent.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else 2**62  # beside the checkpoints: the final one


def _run_name(path: Path, format_: LogFormat) -> str:
    if format_.name == "tensorboard":
        return path.parent.name or path.name
    if path.name == _STATE_FILE:
        return _training_folder(path).name or path.stem
    return path.stem


def _named_apart(sources: Sequence[LogSource]) -> list[LogSource]:
    """Put the folder in front of names that occur twice, and a number where that is not enough."""
    names = [source.name for source in sources]
    apart: list[LogSource] = []
    used: set[str] = set()
    for source in sources:
        name = source.name
        if names.count(name) > 1:
            name = f"{source.paths[0].parent.name}/{name}"
        unique, number = name, 2
        while unique in used:
            unique, number = f"{name}-{number}", number + 1
        used.add(unique)
        apart.append(LogSource(unique, source.paths, source.format))
    return apart


def read_rows(
    path: Path, format_: LogFormat | None = None, problems: LogProblems | None = None
) -> Iterator[LogRow]:
    """Read a finished file, in bounded memory.

    Raises:
        InvalidInputError: It cannot be read, or is in no format that is known.
    """
    try:
        with path.open("rb") as file:
            data = file.read(HEAD_BYTES)
            known = format_ or detect_format(path, data)
            if known is None:
                raise _unknown(path)
            parser = known.parser()
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


def _unknown(path: Path) -> InvalidInputError:
    return InvalidInputError(
        f"{path} is in no format that can be read; allowed: {', '.join(FORMATS)}, "
        "or a pattern for its lines",
        field="path",
        value=str(path),
        allowed=", ".join(FORMATS),
    )
