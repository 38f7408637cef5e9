"""The files of a source, those that cannot be used left out, and the documents in them numbered."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

from stabilizer.errors import ConfigurationError, StabilizerError
from trainer.data.documents import Reason, Skip
from trainer.data.sources.files import StoredFile

logger = logging.getLogger(__name__)

Index = TypeVar("Index")


class BadShardError(StabilizerError):
    """A file that holds no documents for us. It is passed over and counted, and no more."""

    code = "bad_shard"

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Content(Generic[Index]):
    """What was found in a file."""

    index: Index
    """What is needed to read its documents."""
    count: int
    """Number of its documents."""
    flaw: BadShardError | None = None
    """Why there may have been more."""


class Shards(Generic[Index]):
    """What was found in each usable file, and numbers over all of their documents."""

    def __init__(
        self,
        source: str,
        files: Sequence[StoredFile],
        read: Callable[[StoredFile], Content[Index]],
        *,
        max_bad_in_a_row: int,
    ) -> None:
        """Look into every file.

        Args:
            source: Its name.
            files: In order.
            read: Looks into a file; raises BadShardError where nothing of it is of use.
            max_bad_in_a_row: Unusable files passed over, one after another, before giving up.

        Raises:
            ConfigurationError: No file is usable, too many in a row are not, or none holds a
                document.
        """
        self._source = source
        self.files: list[StoredFile] = []
        self.indexes: list[Index] = []
        self.skipped: list[Skip] = []
        counts: list[int] = []
        unusable = bad_in_a_row = 0
        for file in files:
            try:
                content = read(file)
            except BadShardError as error:
                bad_in_a_row += 1
                self._skip(file, error, "is left out")
                unusable += 1
                if bad_in_a_row > max_bad_in_a_row or unusable == len(files):
                    raise ConfigurationError(
                        f"data.sources.{source}: {unusable} unusable files, {bad_in_a_row} of them "
                        f"in a row; the last one: {error}"
                    ) from error
                continue
            bad_in_a_row = 0
            if content.flaw is not None:
                self._skip(file, content.flaw, f"is used up to its document {content.count}")
            self.files.append(file)
            self.indexes.append(content.index)
            counts.append(content.count)
        self.counts: Sequence[int] = counts
        self._ends = list(accumulate(counts))
        if not len(self):
            raise ConfigurationError(f"data.sources.{source}: {files[0].url} holds no document")

    def __len__(self) -> int:
        return self._ends[-1]

    def locate(self, index: int) -> tuple[int, int]:
        """Return the number of the file, and that of the document in it.

        Raises:
            IndexError: There is no such document.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def number(self, sample_id: str, place: Callable[[Index, str], int]) -> int:
        """Return the number of the document with this id.

        Args:
            sample_id: source/file:rest.
            place: Returns the place in a file of what `rest` names; raises LookupError or
                ValueError where there is none.

        Raises:
            KeyError: There is none.
        """
        starts = [0, *self._ends]
        for shard, file in enumerate(self.files):
            head = f"{self._source}/{file.name}:"
            if sample_id.startswith(head):
                try:
                    found = place(self.indexes[shard], sample_id.removeprefix(head))
                except (LookupError, ValueError):
                    break
                if 0 <= found < self.counts[shard]:
                    return starts[shard] + found
        raise KeyError(sample_id)

    def _skip(self, file: StoredFile, error: BadShardError, what: str) -> None:
        logger.warning("source %s: a file %s: %s", self._source, what, error)
        name = f"{self._source}/{file.name}"
        self.skipped.append(Skip("shards", self._source, error.reason, name))


def blocks_of(counts: Sequence[int], size: int) -> list[int]:
    """Cut files of these many documents into blocks of at most `size` documents."""
    return [min(size, count - start) for count in counts for start in range(0, count, size)]
