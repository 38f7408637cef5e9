"""Files of a source, on this machine or behind any URL that fsspec knows.

A file is named, never held open: file systems with connections of their own must not pass a fork,
so every process opens what it reads (fsspec gives each process an instance of its own).
"""

from __future__ import annotations

import glob
import io
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from fsspec.core import url_to_fs
from typing_extensions import override

from stabilizer.errors import ConfigurationError

_SCHEME: Final = "://"
_GLOB: Final = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file by its address."""

    url: str
    """A local path, or a URL."""
    name: str
    """Short name, which no other file of the source has."""

    @property
    def is_local(self) -> bool:
        """Whether `url` is a path on this machine."""
        return _SCHEME not in self.url

    def open(self) -> IO[bytes]:
        """Open for reading; it can seek. Reading raises OSError and nothing else.

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
    """A file of another machine, whose errors are those of a local one."""

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
    """Turn whatever a file system of fsspec raises into OSError: each has errors of its own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # aiohttp, botocore, ...: they have no base in common
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
