"""Connections, locks and transactions, alike on SQLite and PostgreSQL."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from stabilizer.collector.storage.column_types import Table
from stabilizer.errors import ConfigurationError, StorageError

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

BUSY_TIMEOUT_SECONDS: Final = 30
"""How long a SQLite transaction waits for another one."""
_READ_ONLY: Final = "stabilizer_read_only"


def parse_url(database_url: str) -> URL:
    """Parse a database URL; PostgreSQL always uses psycopg.

    Raises:
        ConfigurationError: It names neither a SQLite file nor a PostgreSQL database.
    """
    try:
        url = make_url(database_url)
    except ArgumentError as error:
        raise _bad_url(database_url) from error
    backend = url.get_backend_name()
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    # A database in memory is separate for each thread and lost with the process.
    if backend == "sqlite" and url.database not in (None, "", ":memory:"):
        return url.set(drivername="sqlite+pysqlite")
    raise _bad_url(url.render_as_string(hide_password=True))


def _bad_url(shown: str) -> ConfigurationError:
    return ConfigurationError(
        f"database_url is {shown!r}; allowed: sqlite:///<file> or "
        "postgresql://<user>:<password>@<host>/<database>"
    )


def build_engine(url: URL) -> Engine:
    """Create an engine with explicit transactions and durable commits.

    Raises:
        ConfigurationError: The driver is not installed.
    """
    try:
        if url.get_backend_name() != "sqlite":
            # A database created without an encoding would return bytes for text.
            return create_engine(
                url,
                pool_pre_ping=True,
                pool_size=10,
                max_overflow=20,
                connect_args={"client_encoding": "utf8"},
            )
        engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS})
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigurationError(f"database driver {url.drivername} is not installed") from error
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    # Turn off implicit transactions: they begin late and never around a SELECT.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    # In WAL mode, NORMAL loses acknowledged commits on a power failure.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A reader that turns into a writer fails at once instead of waiting for the lock.
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


class CollectorLock:
    """Holds `<database>.lock` while the process lives: one collector per SQLite file.

    The system releases the lock when the process ends, so that a crash leaves nothing to clean up.

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
        """Release the lock; idempotent.

        The file stays: otherwise two processes could lock two files of the same name.
        """
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Database:
    """A migrated database; a SQLite file is locked for this process.

    Thread-safe: each transaction has a connection of its own.

    Args:
        url: From `parse_url`.

    Raises:
        StorageError: Another collector holds the file, or it cannot be opened.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self._lock = CollectorLock(Path(url.database)) if _is_file(url) and url.database else None
        self.engine = build_engine(url)
        # SQLite has one writer at a time and waits by sleeping, which starves some: queue instead.
        self._writer = threading.Lock() if _is_file(url) else nullcontext()
        # SQLite reads one snapshot anyway; PostgreSQL would read a new one at each statement.
        own = {} if _is_file(url) else {"isolation_level": "REPEATABLE READ"}
        self._reader = self.engine.execution_options(**{_READ_ONLY: True}, **own)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Open a session; commit at the end, or roll back on any exception.

        Raises:
            StorageError: The database refused the write; nothing is stored.
        """
        with self._writer, self._session(self.engine) as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a session that reads one snapshot and blocks nobody.

        Raises:
            StorageError: The database did not answer.
        """
        with self._session(self._reader) as session:
            yield session

    @contextmanager
    def _session(self, engine: Engine) -> Iterator[Session]:
        try:
            with Session(engine, expire_on_commit=False) as session:
                yield session
        except SQLAlchemyError as error:
            raise StorageError(f"the database refused: {_first_line(error)}") from error

    def check(self) -> None:
        """Check that the database answers.

        Raises:
            StorageError: It does not.
        """
        with self.reading() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close all connections and release the lock; idempotent."""
        self.engine.dispose()
        if self._lock is not None:
            self._lock.release()


def _is_file(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _first_line(error: SQLAlchemyError) -> str:
    cause: Any = getattr(error, "orig", None) or error
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__


class Repository:
    """Base of all repositories: queries in one session."""

    def __init__(self, session: Session) -> None:
        self._session = session


def insert_unless_present(
    session: Session, table: type[Table], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Insert rows; skip those whose key exists, also if another connection inserts it now."""
    if not rows:
        return
    if session.get_bind().dialect.name == "postgresql":
        session.execute(postgresql.insert(table).on_conflict_do_nothing(), list(rows))
    else:
        session.execute(sqlite.insert(table).on_conflict_do_nothing(), list(rows))
