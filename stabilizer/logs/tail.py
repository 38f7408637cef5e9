"""Follows a growing log: returns what has been added since the last poll.

How changes of the file are handled:

- It ends within a line or record: the rest is read once it is complete.
- It is rotated or truncated: the new content follows the old.
- A document (`trainer_state.json`) is rewritten as a whole: steps after the newest are new. If its
  newest step goes back, the job was restarted from an earlier checkpoint: steps after that one are
  new again.
- It does not exist yet, or its format is not recognised yet: it is polled again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from stabilizer.logs.formats import CHUNK_BYTES, HEAD_BYTES, LogFormat, detect_format
from stabilizer.logs.rows import LogParser, LogProblems, LogRow

MAX_BYTES_AT_ONCE: Final = 16 * 2**20
"""Limit of one poll, so that a long log does not delay the others."""


class LogTail:
    """Follows one file.

    Args:
        path: It need not exist yet.
        format_: Its format; None to find it out from its first bytes.
    """

    def __init__(self, path: Path, format_: LogFormat | None = None) -> None:
        self.path = path
        self.problems = LogProblems()
        self._format = format_
        self._parser: LogParser | None = None
        self._file: BinaryIO | None = None
        self._identity: tuple[int, int] | None = None
        self._document: tuple[int, int, int] | None = None
        self._newest = -1

    @property
    def is_recognised(self) -> bool:
        """Whether its format is known."""
        return self._format is not None

    def poll(self) -> Iterator[LogRow]:
        """Read what has been added."""
        if self._format is not None and self._format.is_document:
            yield from self._poll_document(self._format)
            return
        if self._file is not None:
            yield from self._read()
        if self._is_replaced():
            yield from self._end_file()
            if self._open():
                yield from self._read()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def _is_replaced(self) -> bool:
        """Return whether the path names another file than the open one, or a shorter one."""
        try:
            found = self.path.stat()
        except OSError:
            return False  # moved away; the new one may come
        if self._file is None:
            return found.st_size > 0
        return self._identity != (found.st_dev, found.st_ino) or found.st_size < self._file.tell()

    def _open(self) -> bool:
        try:
            file = self.path.open("rb")
        except OSError:
            return False
        head = file.read(HEAD_BYTES)
        self._format = self._format or detect_format(self.path, head)
        if self._format is None or self._format.is_document:
            file.close()
            return False
        file.seek(0)
        found = self.path.stat()
        self._file, self._identity = file, (found.st_dev, found.st_ino)
        self._parser = self._format.parser()
        return True

    def _read(self) -> Iterator[LogRow]:
        if self._file is None or self._parser is None:
            return
        budget = MAX_BYTES_AT_ONCE
        while budget > 0 and (data := self._file.read(CHUNK_BYTES)):
            budget -= len(data)
            yield from self._parser.feed(data)

    def _end_file(self) -> Iterator[LogRow]:
        if self._parser is not None:
            yield from self._parser.close()
            self.problems.add(self._parser.problems)
        self.close()
        self._parser = None

    def _poll_document(self, format_: LogFormat) -> Iterator[LogRow]:
        try:
            found = self.path.stat()
            state = (found.st_ino, found.st_size, found.st_mtime_ns)
            if state == self._document:
                return
            data = self.path.read_bytes()
        except OSError:
            return
        parser = format_.parser()
        rows = [*parser.feed(data), *parser.close()]
        if parser.problems.truncated:
            return  # it is being written
        self._document = state
        newest = max((row.step for row in rows), default=-1)
        if newest >= self._newest:
            yield from (row for row in rows if row.step > self._newest)
        self._newest = newest
