"""Exactly one collector per SQLite file."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from stabilizer.errors import StorageError


class CollectorLock:
    """Holds `<database>.lock` for the life of the process.

    The system gives the lock back when the process ends, however it ends, so that a crash leaves
    nothing behind that a person would have to remove.

    Raises:
        StorageError: Another collector holds it; code `database_in_use`.
    """

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(database.name + ".lock")
        try:
            self._descriptor: int | None = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StorageError(
                f"the lock file {self._path} cannot be opened: {error.strerror}"
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise StorageError(
                f"database {database} is in use by another collector (process {holder or '?'}); "
                "a SQLite file takes one collector: stop the other one, name another file, "
                "or use PostgreSQL",
                code="database_in_use",
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let another collector in. Twice is harmless.

        The file stays: removing it would let two processes lock two files of one name.
        """
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
