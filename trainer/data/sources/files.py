"""Files and shards of a source, local or remote, in the order of their names."""

from __future__ import annotations

import glob
import io
import logging
import posixpath
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Final, Generic, TypeVar

from fsspec.core import url_to_fs
from typing_extensions import override

from stabilizer.errors import ConfigurationError, StabilizerError
from trainer.data.documents import Reason, Skip

_SCHEME: Final = "://"
_GLOB: Final = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file by its address."""

    url: str
    """A local path, or a URL."""
    name: str
    """Short name, unique in its source."""

    @property
    def is_local(self) -> bool:
        """Whether `url` is a path on this machine."""
        return _SCHEME not in self.url

    def open(self) -> IO[bytes]:
        """Open for reading, with seeks. Reading raises only OSError.

        Raises:
            OSError: It cannot be opened.
        """
        if self.is_local:
            return Path(self.url).open("rb")
        with _as_os_error(self.url):
            system, path = url_to_fs(self.url)
            return io.BufferedReader(_RemoteFile(self.url, system.open(path, "rb")))

    def read(self, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes from `start` to before `end` (by default all); fewer if it ends there.

        Raises:
            OSError: It cannot be read.
        """
        with self.open() as opened:
            opened.seek(start)
            return opened.read(-1 if end is None else end - start)

    def sibling(self, path: str) -> StoredFile:
        """Return the file at a path relative to this one's folder.

        Raises:
            ValueError: The path leads out of that folder.
        """
        clean = posixpath.normpath(path)
        if not path or clean.startswith(("/", "..")) or _SCHEME in path or "\\" in path:
            raise ValueError(f"{path!r} does not lie below the folder of {self.name}")
        return StoredFile(f"{posixpath.dirname(self.url) or '.'}/{clean}", clean)


class _RemoteFile(io.RawIOBase):
    """A remote file that raises the errors of a local one."""

    def __init__(self, url: str, opened: Any) -> None:  # noqa: ANN401  whatever fsspec gives
        super().__init__()
        self._url = url
        self._opened = opened

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def tell(self) -> int:
        return int(self._opened.tell())

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        with _as_os_error(self._url):
            return int(self._opened.seek(offset, whence))

    @override
    def readinto(self, buffer: Any, /) -> int:
        with _as_os_error(self._url):
            content = self._opened.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    @override
    def close(self) -> None:
        if not self.closed:
            self._opened.close()
        super().close()


@contextmanager
def _as_os_error(url: str) -> Iterator[None]:
    """Convert the errors of any file system of fsspec to OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # aiohttp, botocore, ...: no common base class
        raise OSError(f"{url}: {str(error) or type(error).__name__}") from error


def is_relative(path: str) -> bool:
    """Whether a path is neither a URL nor absolute."""
    return _SCHEME not in path and not Path(path).is_absolute()


def list_files(field: str, path: str, suffix: str) -> list[StoredFile]:
    """List the files of a source, sorted by name.

    Args:
        field: Of the configuration, for errors.
        path: File, folder, glob, or URL of one.
        suffix: Ending of the files in a folder, with its dot; files named one by one must have it.

    Raises:
        ConfigurationError: There are none, or the URL cannot be used.
    """
    try:
        found = _local(path, suffix) if _SCHEME not in path else _remote(path, suffix)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{field}: {path} cannot be listed: {error}") from error
    kept = sorted(url for url in found if not posixpath.basename(url).startswith((".", "_")))
    if not kept:
        raise ConfigurationError(
            f"{field}: {path} holds no {suffix} file; allowed: a folder written by `python -m "
            f"trainer data make`, or a file, folder, glob or URL of {suffix} files"
        )
    refused = [url for url in kept if not url.endswith(suffix)]
    if refused:
        raise ConfigurationError(
            f"{field}: {refused[0]} cannot be read; allowed: plain {suffix} files"
        )
    top = posixpath.commonpath([posixpath.dirname(url) for url in kept]) if len(kept) > 1 else ""
    return [StoredFile(url, _short(url, top)) for url in kept]


def _short(url: str, top: str) -> str:
    return posixpath.relpath(url, top) if top else posixpath.basename(url)


def _local(path: str, suffix: str) -> list[str]:
    folder = Path(path)
    if folder.is_dir():
        found = [entry for entry in folder.iterdir() if entry.name.endswith(suffix)]
    elif _GLOB & set(path):
        names = glob.glob(path, recursive=True)  # noqa: PTH207  Path has no glob of absolute ones
        found = [Path(name) for name in names]
    else:
        found = [folder]
    return [entry.absolute().as_posix() for entry in found if entry.is_file()]


def _remote(path: str, suffix: str) -> list[str]:
    with _as_os_error(path):
        system, inner = url_to_fs(path)
        if _GLOB & set(inner):
            found = [name for name in system.glob(inner) if system.isfile(name)]
        elif system.isdir(inner):
            entries = system.ls(inner, detail=False)
            found = [name for name in entries if str(name).endswith(suffix)]
        else:
            found = [inner] if system.isfile(inner) else []
        return [str(system.unstrip_protocol(name)) for name in found]


logger = logging.getLogger(__name__)

Index = TypeVar("Index")


class BadShardError(StabilizerError):
    """An unusable file. It is skipped and counted."""

    code = "bad_shard"

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Content(Generic[Index]):
    """Content of a file."""

    index: Index
    """Index for reading its documents."""
    count: int
    """Number of its documents."""
    flaw: BadShardError | None = None
    """Why documents may be missing."""


class Shards(Generic[Index]):
    """Contents of all usable files, with numbers over all documents."""

    def __init__(
        self,
        source: str,
        files: Sequence[StoredFile],
        read: Callable[[StoredFile], Content[Index]],
        *,
        max_bad_in_a_row: int,
    ) -> None:
        """Index every file.

        Args:
            source: Its name.
            files: In order.
            read: Looks into a file; raises BadShardError where nothing of it is of use.
            max_bad_in_a_row: Consecutive unusable files skipped before the job fails.

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
