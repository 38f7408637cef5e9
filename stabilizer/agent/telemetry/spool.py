"""The spool: what could not be delivered waits on disk, for this process or a later one.

    <directory>/<run>-<hash of name and key>/
      00000001-5f0c2a91.spool    SQLite database with the records of one process
      00000001/                  the same as version 0.1 wrote it, see `old_spool`

A process holds SQLite's exclusive lock on its file. The lock ends with the process, and forked
children do not inherit it. A later process of the run takes over every file that is not locked.
On local disks SQLite writes ahead (WAL), elsewhere it keeps a rollback journal: WAL is not safe
on network file systems. No lock is waited for longer than `_LOCK_WAIT_SECONDS`.

Only the sender thread uses this module: a disk that hangs costs telemetry, never a step.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import re
import secrets
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from stabilizer.agent.telemetry import old_spool
from stabilizer.agent.telemetry.failures import Counters
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.errors import TelemetryError
from stabilizer.protocol.series import Catalog

SPOOL_ERRORS: Final = (OSError, sqlite3.Error)
"""What a method of `SpoolFile` may raise."""

_logger = logging.getLogger(__name__)
_LOCK_WAIT_SECONDS: Final = 1.0
_PAGE_BYTES: Final = 4096
_CHECKPOINT_PAGES: Final = 256
_JOURNAL_BYTES: Final = 8 * 2**20
"""Part of the bound that is kept for the journal, which holds the largest batch once more."""
_FILE_NAME = re.compile(r"[0-9]{8}-[0-9a-f]+\.spool\Z")
_OLD_FOLDER_NAME = re.compile(r"[0-9]{8}\Z")
_APPLICATION_ID: Final = 0x53545350
_SCHEMA_VERSION: Final = 1
_SCHEMA: Final = (
    "CREATE TABLE owner (info TEXT NOT NULL)",
    """CREATE TABLE records (
        id INTEGER PRIMARY KEY,
        kind INTEGER NOT NULL,
        num_frames INTEGER NOT NULL,
        payload BLOB NOT NULL
    )""",
)
_LOCAL_FILE_SYSTEMS: Final = frozenset(
    "bcachefs btrfs ext2 ext3 ext4 f2fs overlay ramfs tmpfs xfs zfs".split()  # noqa: SIM905  one line
)


class RecordKind(IntEnum):
    """What a record holds; the numbers are those on disk."""

    BATCH = 1
    RESULT = 3
    """JSON of a `CommandResult`."""


_KINDS: Final = frozenset(int(kind) for kind in RecordKind)


@dataclass(frozen=True, slots=True)
class Record:
    """One delivery, complete and numbered; sent again it is the same delivery.

    Args:
        kind: What the payload is.
        num_frames: How many puts it carries, to be counted if it is lost.
        payload: The encoded batch or result.
    """

    kind: RecordKind
    num_frames: int
    payload: bytes


class SessionInfo(BaseModel):
    """What a later process must know to deliver the records of an earlier one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    catalogs: tuple[Catalog, ...] = ()
    """Every catalog that it has used."""
    run_id: str | None = None
    """None: the process was never registered."""


class _DamagedFileError(sqlite3.DatabaseError):
    """The file is a database, and does not hold what was written."""


class SpoolFile:
    """The records of one process, first in, first out; locked while it is open.

    Methods raise `SPOOL_ERRORS`; the file stays usable, and no record is lost by that.

    Args:
        path: The database.
        db: Its connection, which holds the lock.
    """

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path = path
        self._db = db
        self._is_open = True
        self._read_id = 0
        self._head_id = 0
        self._head: Record | None = None
        totals = "SELECT count(*), coalesce(sum(num_frames), 0) FROM records"
        self._num_records: int
        self.num_frames: int
        self._num_records, self.num_frames = db.execute(totals).fetchone()

    @classmethod
    def create(cls, path: Path, info: SessionInfo) -> SpoolFile:
        """Make the file of this process; the path must not exist."""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            db = _connect(path, _LOCK_WAIT_SECONDS)
            with _closed_on_error(db):
                db.execute("BEGIN")
                for statement in _SCHEMA:
                    db.execute(statement)
                db.execute("INSERT INTO owner (info) VALUES (?)", (info.model_dump_json(),))
                db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
                db.execute("COMMIT")
                return cls(path, db)
        except BaseException:
            _unlink(path)
            raise

    @classmethod
    def claim(cls, path: Path) -> tuple[SpoolFile, SessionInfo] | None:
        """Take over the file of a dead process; None if it lives, or left nothing.

        Raises:
            sqlite3.Error: The file cannot be used; see `_is_damaged`.
            ValidationError: Its owner is not readable.
        """
        try:
            db = _connect(path, 0.0)
        except FileNotFoundError:
            return None
        except sqlite3.OperationalError as error:
            if _primary_code(error) == sqlite3.SQLITE_BUSY:
                return None
            raise
        with _closed_on_error(db):
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == _SCHEMA_VERSION:
                file = cls(path, db)
                (info,) = db.execute("SELECT info FROM owner").fetchone()
                if file:
                    return file, SessionInfo.model_validate_json(info)
        _disconnect(db)
        if version in (0, _SCHEMA_VERSION):  # else it is the file of a later version
            _unlink(path)
        return None

    @property
    def num_bytes(self) -> int:
        """Bytes in use; what is freed goes back to the disk with the next commit."""
        if not self._is_open:
            return 0
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        num_bytes: int = (pages - free) * _PAGE_BYTES
        return num_bytes

    def __bool__(self) -> bool:
        return self._num_records > 0

    def extend(self, rows: Iterable[tuple[int, int, bytes]]) -> None:
        """Write (kind, num_frames, payload) behind the others; all or, on an error, none."""
        count = frames = 0
        with self._db:
            self._db.execute("BEGIN")
            for row in rows:
                insert = "INSERT INTO records (kind, num_frames, payload) VALUES (?, ?, ?)"
                self._db.execute(insert, row)
                count, frames = count + 1, frames + row[1]
        self._num_records += count
        self.num_frames += frames

    def head(self) -> Record | None:
        """Return the oldest record; None if there is none."""
        if self._head is None and self._num_records:
            row = next(self.rows(limit=1), None)
            if row is None or row[1] not in _KINDS:
                raise _DamagedFileError(f"{self.path} lacks {self._num_records} records")
            self._head_id, kind, num_frames, payload = row
            self._head = Record(RecordKind(kind), num_frames, payload)
        return self._head

    def rows(self, limit: int = -1) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield the (id, kind, num_frames, payload) of what waits."""
        query = "SELECT id, kind, num_frames, payload FROM records WHERE id > ?"
        yield from self._db.execute(f"{query} ORDER BY id LIMIT ?", (self._read_id, limit))

    def pop(self) -> None:
        """Remove the oldest record.

        It does not come again even if the disk refuses the change; only a later process would see
        it, and send it once more.
        """
        record = self.head()
        if record is None:
            return
        self._head = None
        self._read_id = self._head_id
        self._num_records -= 1
        self.num_frames -= record.num_frames
        try:
            self._db.execute("DELETE FROM records WHERE id <= ?", (self._read_id,))
        except sqlite3.Error as error:
            _logger.warning("a delivered record stays in %s: %s", self.path, error)

    def drop_oldest(self, num_bytes: int) -> int:
        """Free this much by dropping the oldest batches; results stay. Return the frames lost."""
        count = frames = 0
        query = "SELECT id, num_frames FROM records WHERE id > ? AND kind != ? ORDER BY id LIMIT 1"
        with self._db:
            self._db.execute("BEGIN")
            target = self.num_bytes - num_bytes
            while self.num_bytes > target:
                row = self._db.execute(query, (self._read_id, RecordKind.RESULT)).fetchone()
                if row is None:
                    break
                self._db.execute("DELETE FROM records WHERE id = ?", (row[0],))
                count, frames = count + 1, frames + row[1]
        self._head = None
        self._num_records -= count
        self.num_frames -= frames
        return frames

    def save(self, info: SessionInfo) -> None:
        """Write who the owner is."""
        self._db.execute("UPDATE owner SET info = ?", (info.model_dump_json(),))

    def close(self) -> None:
        """Leave it to a later process; an empty one is deleted."""
        if self._is_open and not self:
            self.remove()
        elif self._is_open:
            self._is_open = False
            _disconnect(self._db)

    def remove(self) -> None:
        """Delete it with all it holds; never raises."""
        self._num_records = self.num_frames = 0
        self._head = None
        try:
            # Deleted while it is locked, so that nobody takes it over in between.
            self.path.unlink(missing_ok=True)
        except OSError as error:
            _logger.warning("%s cannot be deleted: %s", self.path, error)
        if self._is_open:
            self._is_open = False
            with suppress(sqlite3.Error):
                _disconnect(self._db)
        with suppress(OSError):
            _unlink(self.path)


class Spool:
    """The spool of a run.

    Methods raise `TelemetryError`, code `spool_failed`, if the disk fails.

    Args:
        settings: Place and bounds.
        name: Name of the run.
        key: Key of the run.
        counters: Count what is dropped and what is spooled.
    """

    def __init__(self, settings: ReporterSettings, name: str, key: str, counters: Counters) -> None:
        self._limit = settings.spool_bytes - min(_JOURNAL_BYTES, settings.spool_bytes // 4)
        root = settings.spool_directory or _default_directory()
        self._folder = root / _folder_name(name, key)
        self._counters = counters
        self._file: SpoolFile | None = None
        self._saved: SessionInfo | None = None
        self._orphans: list[SpoolFile] = []
        self.info: SessionInfo | None = None
        """Who this process is; set before the first append, written with the next one."""

    def take_over(self) -> list[tuple[SpoolFile, SessionInfo]]:
        """Take over the files of every dead process of the run, oldest first."""
        found: list[tuple[SpoolFile, SessionInfo]] = []
        if self._limit == 0:
            return found
        with self._failures():
            if not self._folder.is_dir():
                return found
            _check_owner(self._folder)
            for folder in self._entries(_OLD_FOLDER_NAME):
                self._import(folder)
            for path in self._entries(_FILE_NAME):
                claimed = self._claim(path)
                if claimed is not None:
                    found.append(claimed)
        self._orphans = [file for file, _ in found]
        return found

    def append(self, record: Record) -> None:
        """Write a record; drop the oldest ones if the bound demands it."""
        with self._failures():
            size = (len(record.payload) // _PAGE_BYTES + 3) * _PAGE_BYTES
            if size > self._limit:
                raise OSError(f"a record of {size} bytes does not fit into {self._limit}")
            file = self._own_file()
            self._make_room(file, size)
            file.extend([(record.kind, record.num_frames, record.payload)])
        self._counters.add(spooled=record.num_frames)

    def head(self) -> Record | None:
        """Return the oldest record of this process."""
        with self._failures():
            return None if self._file is None else self._file.head()

    def pop(self) -> None:
        """Remove the oldest record of this process; its file goes with the last one."""
        with self._failures():
            if self._file is not None:
                self._file.pop()
                if not self._file:
                    file, self._file = self._file, None
                    file.remove()

    @property
    def is_filled(self) -> bool:
        """Whether records of this process wait."""
        return self._file is not None and bool(self._file)

    @property
    def num_bytes(self) -> int:
        """Bytes on disk without journals, those of earlier processes included."""
        return sum(file.num_bytes for file in self._files())

    def close(self) -> None:
        """Leave what is undelivered to a later process."""
        files = self._files()
        self._orphans, self._file = [], None
        with self._failures():
            for file in files:
                file.close()

    def _files(self) -> list[SpoolFile]:
        return self._orphans if self._file is None else [*self._orphans, self._file]

    def _entries(self, name: re.Pattern[str]) -> list[Path]:
        return sorted(path for path in self._folder.iterdir() if name.match(path.name))

    def _claim(self, path: Path) -> tuple[SpoolFile, SessionInfo] | None:
        try:
            return SpoolFile.claim(path)
        except (*SPOOL_ERRORS, ValidationError) as error:
            self._counters.add(failures=1)
            if isinstance(error, ValidationError) or _is_damaged(error):
                _logger.warning("%s is damaged and deleted: %s", path, error)
                _unlink(path)
            else:
                _logger.warning("%s cannot be taken over and stays: %s", path, error)
            return None

    def _import(self, folder: Path) -> None:
        """Write what version 0.1 left into a file of ours."""
        try:
            with old_spool.locked(folder):
                target = self._folder / f"{folder.name}-{folder.stat().st_ino:x}.spool"
                if not target.exists():  # else an earlier process died before the next line
                    self._convert(folder, target)
                shutil.rmtree(folder)
        except (BlockingIOError, FileNotFoundError):
            pass  # its process lives, or another one is faster
        except SPOOL_ERRORS as error:
            self._counters.add(failures=1)
            _logger.warning("%s cannot be taken over and stays: %s", folder, error)

    def _convert(self, folder: Path, target: Path) -> None:
        try:
            owner = old_spool.read_owner(folder)
        except (ValidationError, FileNotFoundError):
            rows = old_spool.read_records(folder, self._count_lost)
            self._count_lost(sum(row[2] for row in rows))  # nobody can deliver it
            return
        info = SessionInfo(catalogs=owner.message.catalogs, run_id=owner.run_id)
        # Complete before it gets its name, so that nobody takes over half of it.
        draft = target.with_suffix(".draft")
        _unlink(draft)
        file = SpoolFile.create(draft, info)
        try:
            file.extend(old_spool.convert(folder, owner, self._count_lost))
            is_filled = bool(file)
            file.close()
            if is_filled:
                draft.rename(target)
        except BaseException:
            file.remove()
            raise

    def _count_lost(self, num_frames: int) -> None:
        self._counters.add(dropped=num_frames)

    def _make_room(self, own: SpoolFile, size: int) -> None:
        for file in (*self._orphans, own):
            try:
                excess = self.num_bytes + size - self._limit
                if excess <= 0:
                    return
                self._count_lost(file.drop_oldest(excess))
            except sqlite3.Error as error:
                if file is own:
                    raise
                raise OSError(f"{file.path}: {error}") from error
        if self.num_bytes + size > self._limit:
            raise OSError("there is no room beside the results, which are kept")

    def _own_file(self) -> SpoolFile:
        if self._file is None or not self._file.path.exists():
            self._file = self._new_file(self._file)
        if self.info is not None and self.info != self._saved:
            self._file.save(self.info)
            self._saved = self.info
        return self._file

    def _new_file(self, vanished: SpoolFile | None) -> SpoolFile:
        """Make this process's file, with the records of one that was deleted under us."""
        if self.info is None:
            raise OSError("the owner of the records is not known")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(self._folder)
        names = [path.name for path in self._folder.iterdir()]
        numbers = [int(name[:8]) for name in names if re.match(r"[0-9]{8}(?![0-9])", name)]
        path = self._folder / f"{max(numbers, default=0) + 1:08d}-{secrets.token_hex(4)}.spool"
        file = SpoolFile.create(path, self.info)
        self._saved = self.info
        if vanished is not None:
            _logger.warning("%s was deleted by someone else", vanished.path)
            try:
                file.extend(row[1:] for row in vanished.rows())
            except sqlite3.Error as error:
                if not _is_damaged(error):
                    file.remove()
                    raise
                self._count_lost(vanished.num_frames)
            vanished.remove()
        return file

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except SPOOL_ERRORS as error:
            if self._file is not None and _is_damaged(error):
                self._count_lost(self._file.num_frames)
                self._file.remove()
                self._file = None
            raise TelemetryError(
                f"the spool {self._folder} failed: {error}", code="spool_failed"
            ) from error


def is_on_local_disk(path: Path, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Tell whether a file lies on a file system of this node; False if that is unclear."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    real = path.resolve()
    longest, kind = 0, ""
    for line in lines:
        _, place, found, *_ = line.split(" ")
        place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place)
        if len(place) >= longest and real.is_relative_to(place):
            longest, kind = len(place), found
    return kind in _LOCAL_FILE_SYSTEMS


def _connect(path: Path, wait_seconds: float) -> sqlite3.Connection:
    """Open and lock an existing file.

    Raises:
        FileNotFoundError: It is gone, or was deleted before it could be locked.
        sqlite3.Error: It is locked, or cannot be used.
    """
    path.stat()
    db = sqlite3.connect(path, timeout=wait_seconds, isolation_level=None, check_same_thread=False)
    # Only `_disconnect` closes it: a finalizer in a forked child would undo the parent's write.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(db))
    with _closed_on_error(db):
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA auto_vacuum = FULL")
        db.execute("BEGIN EXCLUSIVE")
        db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")  # a write, or it may be read-only
        db.execute("COMMIT")
        path.stat()  # raises if it was deleted before it was locked
        mode = "WAL" if is_on_local_disk(path) else "TRUNCATE"
        db.execute(f"PRAGMA journal_mode = {mode}")
        db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        db.execute("PRAGMA synchronous = NORMAL")
    return db


@contextmanager
def _closed_on_error(db: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _disconnect(db)
        raise


def _disconnect(db: sqlite3.Connection) -> None:
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(db))
    db.close()


def _unlink(path: Path) -> None:
    for suffix in ("", "-wal", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _primary_code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _is_damaged(error: Exception) -> bool:
    """Tell whether the content of a file is lost, in contrast to an operation that failed."""
    damage = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return isinstance(error, _DamagedFileError) or _primary_code(error) in damage


def _default_directory() -> Path:
    return Path(tempfile.gettempdir()) / f"stabilizer-{os.getuid()}"


def _folder_name(name: str, key: str) -> str:
    digest = hashlib.blake2b(f"{name}\0{key}".encode(), digest_size=8).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60].strip(".-") or "run"
    return f"{readable}-{digest}"


def _check_owner(folder: Path) -> None:
    """The temporary folder is shared: use nothing that another user has put there."""
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
