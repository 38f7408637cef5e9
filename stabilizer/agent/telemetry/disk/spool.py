"""What could not be delivered waits on disk: bounded, in order, for this process or a later one.

    <directory>/<run>-<hash of name and key>/
      00000001/           a session: what one process left
        lock              held by the process that writes or drains it
        session.json      who the process was, see `SessionInfo`
        00000001.seg ...  see `segments`

Two processes of the same run never share a session. A later process takes over the sessions whose
lock is free, and drains them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from stabilizer.agent.telemetry.attempts import Start
from stabilizer.agent.telemetry.counters import Counters
from stabilizer.agent.telemetry.disk.records import Record
from stabilizer.agent.telemetry.disk.segments import SegmentQueue, encode_record
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.errors import TelemetryError
from stabilizer.protocol.runs import RunRegister

_SESSION = re.compile(r"[0-9]{8}\Z")


class SessionInfo(BaseModel):
    """What a later process must know to speak for an earlier one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    message: RunRegister
    """How it introduces itself, with every catalog it has used."""
    run_id: str | None = None
    """None: the collector has never heard of this process."""
    base: int | None = None
    starts: dict[int, Start] = {}


class SessionLock:
    """A lock that lives as long as this process, not as long as its forked children."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino != os.fstat(self._fd).st_ino:
                raise BlockingIOError(f"{path} was replaced while it was taken")
        except OSError:
            os.close(self._fd)
            raise
        _held_locks.add(self)

    def release(self) -> None:
        """Let go; another process may take over."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


_held_locks: weakref.WeakSet[SessionLock] = weakref.WeakSet()


def _forget_locks() -> None:
    # A worker that outlives the job must not keep the job's spool locked.
    for lock in list(_held_locks):
        lock.release()


os.register_at_fork(after_in_child=_forget_locks)


class Session:
    """One process' part of the spool."""

    def __init__(self, folder: Path, lock: SessionLock, queue: SegmentQueue) -> None:
        self.folder = folder
        self.queue = queue
        self._lock = lock

    def load(self) -> SessionInfo:
        """Read what was left.

        Raises:
            OSError: It cannot be read.
            ValidationError: It is not ours.
        """
        self.queue.load()
        return SessionInfo.model_validate_json((self.folder / "session.json").read_bytes())

    def save(self, info: SessionInfo) -> None:
        """Write who this process is; whole or not at all."""
        fresh = self.folder / "session.new"
        fresh.touch(mode=0o600)
        with fresh.open("wb") as file:
            file.write(info.model_dump_json().encode())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.folder / "session.json")

    def close(self) -> None:
        """Leave it to a later process; an empty one is removed."""
        self.queue.close()
        if not self.queue:
            self.remove()
        self._lock.release()

    def remove(self) -> None:
        """Delete it with all it holds."""
        self.queue.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()


class Spool:
    """The spool of a run. Used by the sender thread alone.

    Every method raises `TelemetryError`, code `spool_failed`, where the disk does not do as told.

    Args:
        settings: Place and bounds.
        name: Name of the run.
        key: Key of the run.
        counters: Where what is dropped, and what is spooled, is counted.
    """

    def __init__(self, settings: ReporterSettings, name: str, key: str, counters: Counters) -> None:
        self._limit = settings.spool_bytes
        self._segment_bytes = max(1, min(settings.segment_bytes, settings.spool_bytes // 8))
        self._root = settings.spool_directory or _default_directory()
        self._folder = self._root / _folder_name(name, key)
        self._counters = counters
        self._session: Session | None = None
        self._saved: SessionInfo | None = None
        self._leftovers: list[Session] = []
        self.info: SessionInfo | None = None
        """Set by the owner whenever it changes; written with the next record."""

    def take_over(self) -> list[tuple[Session, SessionInfo]]:
        """Take over every session of the run whose process is gone, oldest first."""
        found: list[tuple[Session, SessionInfo]] = []
        if self._limit == 0:
            return found
        with self._failures():
            if not self._folder.is_dir():
                return found
            _check_owner(self._folder)
            for folder in sorted(self._folder.iterdir()):
                if _SESSION.match(folder.name):
                    found += self._take_over_one(folder)
        self._leftovers = [session for session, _ in found]
        return found

    def append(self, record: Record) -> None:
        """Write a record; drop the oldest where the bound asks for it."""
        with self._failures():
            size = len(encode_record(record))
            if size > self._limit:
                raise OSError(f"a record of {size} bytes does not fit into {self._limit}")
            session = self._own_session()
            self._make_room(session, size)
            session.queue.append(record)
        self._counters.add(spooled=record.num_frames)

    def head(self) -> Record | None:
        """Return the oldest record of this process."""
        if self._session is None:
            return None
        with self._failures():
            return self._session.queue.head()

    def pop(self) -> None:
        """Remove the oldest record of this process."""
        if self._session is not None:
            with self._failures():
                self._session.queue.pop()

    @property
    def is_filled(self) -> bool:
        """Whether records of this process wait."""
        return self._session is not None and bool(self._session.queue)

    @property
    def num_bytes(self) -> int:
        """Bytes on disk, those of earlier processes included."""
        sessions = [*self._leftovers, *([self._session] if self._session else [])]
        return sum(session.queue.num_bytes for session in sessions)

    def close(self) -> None:
        """Leave what is undelivered to a later process."""
        with self._failures():
            for session in (*self._leftovers, *([self._session] if self._session else [])):
                session.close()
        self._leftovers = []
        self._session = None

    def _take_over_one(self, folder: Path) -> list[tuple[Session, SessionInfo]]:
        try:
            lock = SessionLock(folder / "lock")
        except (BlockingIOError, FileNotFoundError):
            return []  # its process lives, or another one has just drained it
        session = self._session_at(folder, lock)
        try:
            return [(session, session.load())]
        except (ValidationError, FileNotFoundError):
            # Without its owner's name nothing of it can be delivered.
            self._counters.add(dropped=session.queue.num_frames)
            session.remove()
            return []

    def _session_at(self, folder: Path, lock: SessionLock) -> Session:
        queue = SegmentQueue(folder, self._segment_bytes, self._count_lost)
        return Session(folder, lock, queue)

    def _count_lost(self, num_frames: int) -> None:
        self._counters.add(dropped=num_frames)

    def _own_session(self) -> Session:
        if self._session is not None and not self._session.folder.is_dir():
            # Somebody tidied the temporary folder up.
            self._count_lost(self._session.queue.num_frames)
            self._session.remove()
            self._session = None
        if self._session is None:
            self._session = self._new_session()
            self._saved = None
        if self.info is not None and self.info != self._saved:
            self._session.save(self.info)
            self._saved = self.info
        return self._session

    def _new_session(self) -> Session:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(self._folder)
        # Locked before it gets its name, so that nobody takes it for a leftover.
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))
        lock = SessionLock(fresh / "lock")
        names = [int(item.name) for item in self._folder.iterdir() if _SESSION.match(item.name)]
        for number in range(max(names, default=0) + 1, 10**8):
            folder = self._folder / f"{number:08d}"
            try:
                fresh.rename(folder)
            except OSError:
                if not folder.exists():
                    shutil.rmtree(fresh, ignore_errors=True)
                    lock.release()
                    raise
                continue  # another process was faster
            return self._session_at(folder, lock)
        raise OSError(f"{self._folder} is full")

    def _make_room(self, own: Session, size: int) -> None:
        while self.num_bytes + size > self._limit:
            session = next((left for left in self._leftovers if left.queue), own)
            results = session.queue.drop_oldest()
            if session is own:
                for result in results:
                    own.queue.append(result)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TelemetryError(
                f"the spool {self._folder} failed: {error}", code="spool_failed"
            ) from error


def _default_directory() -> Path:
    return Path(tempfile.gettempdir()) / f"stabilizer-{os.getuid()}"


def _folder_name(name: str, key: str) -> str:
    digest = hashlib.blake2b(f"{name}\0{key}".encode(), digest_size=8).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60].strip(".-") or "run"
    return f"{readable}-{digest}"


def _check_owner(folder: Path) -> None:
    """The temporary folder belongs to everybody: take nothing that somebody else has laid there."""
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
