"""What released versions left behind, unpacked, and today's commands on it."""

import gzip
import io
import tarfile
import threading
import time
from contextlib import contextmanager

import pytest

from tests.compat.wire import VERSIONS, folder_of, load
from tests.forked import start_module
from tests.postgres import PostgresServer, find_programs

SECONDS = 90


def wait_until(predicate, process, log):
    """Ask again until the answer is true; a process that ends badly ends the wait with its log."""
    deadline, pause = time.monotonic() + SECONDS, threading.Event()
    while not (answer := predicate()):
        assert process.poll() in (None, 0), log.read_text()[-4000:]
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        pause.wait(0.05)
    return answer


class Recording:
    """What users of a version hold."""

    def __init__(self, version):
        self.version = version
        self.folder = folder_of(version)

    def load(self, name):
        return load(self.version, name)

    def unzip(self, name):
        return gzip.decompress((self.folder / name).read_bytes())


@pytest.fixture(scope="session", params=VERSIONS)
def recording(request):
    return Recording(request.param)


def unpack_job(recording, folder):
    """Unpack what jobs left on disk."""
    packed = recording.unzip("job.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture
def serve(tmp_path):
    """Serve a database by today's collector: `with serve(database) as url`."""

    @contextmanager
    def served(database, lost_after="1e7"):
        ready, log = tmp_path / "url", tmp_path / "collector.log"
        ready.unlink(missing_ok=True)
        # What was running when the database was recorded is lost only where a test wants it.
        environment = {"STABILIZER_LOST_AFTER_HEARTBEATS": lost_after}
        arguments = ["--port", "0", "--database", database, "--ready-file", str(ready)]
        process = start_module("stabilizer", ["serve", *arguments], log, environment)
        try:
            wait_until(lambda: ready.exists() and ready.read_text().strip(), process, log)
            yield ready.read_text().strip()
        finally:
            process.terminate()
            assert process.wait(30) == 0, log.read_text()[-4000:]

    return served


@pytest.fixture(scope="session")
def server():
    programs = find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL programs on PATH or under /usr/lib/postgresql")
    server = PostgresServer(programs)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def sqlite_database(recording, tmp_path):
    file = tmp_path / "collector.db"
    file.write_bytes(recording.unzip("collector.db.gz"))
    return f"sqlite:///{file}"


@pytest.fixture
def postgresql_database(recording, server):
    name = server.create("template1")
    dump = server.folder / f"{name}.sql"
    dump.write_bytes(recording.unzip("collector.sql.gz"))
    dump.chmod(0o644)
    where = ["-h", str(server.folder), "-U", "stabilizer", "-v", "ON_ERROR_STOP=1", "-q"]
    server.run("psql", *where, "-f", str(dump), name)
    return server.url(name)


@pytest.fixture
def job_folder(recording, tmp_path):
    """The corpus, the folder of a run with a checkpoint, and the spool of a job that was killed."""
    return unpack_job(recording, tmp_path / "job")
