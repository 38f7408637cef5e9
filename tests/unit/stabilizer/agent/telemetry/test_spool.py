"""Records on disk: in order, bounded, of one process, and whole after a crash."""

import gc
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from stabilizer.agent.telemetry import spool as spool_module
from stabilizer.agent.telemetry.reporter import Reporter
from stabilizer.agent.telemetry.spool import (
    Record,
    RecordKind,
    SessionInfo,
    is_on_local_disk,
)
from stabilizer.clock import SystemClock
from stabilizer.errors import TelemetryError
from stabilizer.protocol.batches import (
    AttemptStart,
    Marker,
    MarkerKind,
)
from stabilizer.protocol.runs import RunState

BOUND = 8 * 2**20


def record(number, size=100, kind=RecordKind.BATCH):
    return Record(kind, 1, number.to_bytes(4, "little") * (size // 4))


def records(*numbers):
    return [record(number) for number in numbers]


def drain(spool):
    found = []
    while (head := spool.head()) is not None:
        found.append(head)
        spool.pop()
    return found


def size_on_disk(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def folder(settings):
    return settings.spool_directory


@pytest.fixture(params=["local disk", "network file system"])
def disk(request, monkeypatch):
    is_local = request.param == "local disk"
    monkeypatch.setattr(spool_module, "is_on_local_disk", lambda path: is_local)
    return request.param


PRELUDE = """
import os, signal, sys
from pathlib import Path
from stabilizer.agent.telemetry import spool as spool_module
from stabilizer.agent.telemetry.failures import Counters
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.agent.telemetry.spool import Record, RecordKind, SessionInfo, Spool

if sys.argv[2] == "network":
    spool_module.is_on_local_disk = lambda path: False

def make():
    settings = ReporterSettings(spool_directory=Path(sys.argv[1]))
    spool = Spool(settings, "a run", "7", Counters())
    spool.info = SessionInfo()
    return spool

def record(number, size=100):
    return Record(RecordKind.BATCH, 1, number.to_bytes(4, "little") * (size // 4))
"""


@pytest.fixture
def start_process(folder):
    """Run code after `PRELUDE` in another process of the run."""

    def start(code, disk="local"):
        text = PRELUDE + textwrap.dedent(code)
        command = [sys.executable, "-c", text, str(folder), disk.split()[0]]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    return start


def output(process):
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return text


class TestSpool:
    def test_first_in_first_out(self, make_spool, folder, disk):
        spool = make_spool(*range(50))
        assert drain(spool) == records(*range(50))
        assert size_on_disk(folder) == 0

    def test_reading_and_writing_in_turn(self, make_spool):
        spool = make_spool()
        for number in range(30):
            spool.append(record(number))
            assert spool.head() == record(number)
            spool.pop()
        assert spool.head() is None
        assert spool.num_bytes == 0

    def test_is_never_larger_on_disk_than_its_bound(self, make_spool, folder, disk):
        spool = make_spool(spool_bytes=BOUND)
        for number in range(200):
            spool.append(record(number, 100_000))
            assert size_on_disk(folder) <= BOUND
        kept = [int.from_bytes(item.payload[:4], "little") for item in drain(spool)]
        assert kept == list(range(200 - len(kept), 200))
        assert spool.counters.health.frames_dropped == 200 - len(kept)
        assert len(kept) > 50

    def test_results_outlive_the_bound_in_their_place(self, make_spool):
        spool = make_spool(spool_bytes=BOUND)
        result = record(10**6, kind=RecordKind.RESULT)
        spool.append(result)
        for number in range(200):
            spool.append(record(number, 100_000))
        assert drain(spool)[0] == result

    def test_bound_holds_for_what_others_left_as_well(self, make_spool):
        first = make_spool(spool_bytes=BOUND)
        for number in range(60):
            first.append(record(number, 100_000))
        first.close()
        second = make_spool(spool_bytes=BOUND)
        second.take_over()
        for number in range(60):
            second.append(record(number, 100_000))
            assert second.num_bytes <= BOUND
        assert len(drain(second)) == 60
        assert 0 < second.counters.health.frames_dropped <= 60

    def test_record_beyond_the_bound_is_refused(self, make_spool):
        with pytest.raises(TelemetryError, match="does not fit") as caught:
            make_spool(spool_bytes=50).append(record(1))
        assert caught.value.code == "spool_failed"

    def test_registration_changes_the_owner_and_no_record(self, make_spool, kit):
        spool = make_spool(1)
        spool.info = SessionInfo(catalogs=(kit.CATALOG, kit.OTHER), run_id="r")
        spool.append(record(2))
        spool.close()
        ((file, info),) = make_spool().take_over()
        assert info == spool.info
        assert drain(file) == records(1, 2)


class TestProcesses:
    def test_later_process_takes_over_oldest_first(self, make_spool):
        first, second = make_spool(1, 2), make_spool(3)
        first.close()
        second.close()
        found = make_spool().take_over()
        assert [drain(file) for file, _ in found] == [records(1, 2), records(3)]

    def test_empty_spool_leaves_no_file(self, make_spool, folder):
        spool = make_spool(1)
        spool.pop()
        spool.close()
        assert size_on_disk(folder) == 0

    def test_runs_of_other_keys_are_left_alone(self, make_spool):
        make_spool(1, key="7").close()
        assert make_spool(key="8").take_over() == []

    def test_living_processes_do_not_share(self, make_spool, start_process, disk):
        spool = make_spool(1)
        code = "print(len(make().take_over()))"
        assert output(start_process(code, disk)) == "0\n"
        assert make_spool().take_over() == []
        spool.close()
        assert output(start_process(code, disk)) == "1\n"

    def test_killed_process_loses_nothing_acknowledged(self, make_spool, start_process, disk):
        process = start_process(
            """
            spool = make()
            for number in range(10**9):
                spool.append(record(number, 20_000))
                print(number, flush=True)
            """,
            disk,
        )
        acknowledged = [process.stdout.readline() for _ in range(20)]
        process.kill()
        acknowledged += process.stdout.read().splitlines()
        process.wait()
        process.stdout.close()
        ((file, _),) = make_spool().take_over()
        found = [int.from_bytes(item.payload[:4], "little") for item in drain(file)]
        assert found == list(range(len(found)))
        assert len(acknowledged) <= len(found) <= len(acknowledged) + 1

    def test_death_in_the_middle_of_a_write_undoes_it(self, make_spool, start_process, disk):
        process = start_process(
            """
            spool = make()
            spool.append(record(0))
            spool.append(record(1))
            spool.pop()

            def rows():
                for _ in range(100):  # more than SQLite holds in memory, so that the disk has it
                    yield 1, 1, b"x" * 100_000
                os.kill(os.getpid(), signal.SIGKILL)

            spool._file.extend(rows())
            """,
            disk,
        )
        assert process.wait(60) == -signal.SIGKILL
        process.stdout.close()
        ((file, _),) = make_spool().take_over()
        assert drain(file) == records(1)

    def test_death_before_the_first_record_leaves_no_file(self, make_spool, folder, start_process):
        process = start_process(
            """
            connect = spool_module._connect
            spool_module._connect = lambda *args: connect(*args) and os.kill(os.getpid(), 9)
            make().append(record(1))
            """
        )
        assert process.wait(60) == -signal.SIGKILL
        process.stdout.close()
        assert list(folder.rglob("*.spool"))
        assert make_spool().take_over() == []
        assert size_on_disk(folder) == 0

    def test_forked_child_leaves_file_and_lock_alone(self, make_spool, start_process, disk):
        spool = make_spool(1)
        file = spool._file
        file._db.execute("BEGIN")
        file._db.execute("UPDATE records SET num_frames = 5")
        child = os.fork()
        if child == 0:
            del file
            spool._file = None
            gc.collect()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        file._db.execute("COMMIT")
        assert output(start_process("print(len(make().take_over()))", disk)) == "0\n"
        assert spool.head() == replace(record(1), num_frames=5)

    def test_lock_ends_with_the_process_though_a_child_lives(self, make_spool, start_process):
        process = start_process(
            """
            spool = make()
            spool.append(record(1))
            child = os.fork()
            if child == 0:
                signal.pause()
            print(child, flush=True)
            os._exit(0)
            """
        )
        child = int(process.stdout.readline())
        try:
            assert process.wait(60) == 0
            ((file, _),) = make_spool().take_over()
            assert drain(file) == records(1)
        finally:
            os.kill(child, signal.SIGKILL)
            process.stdout.close()


class TestFailures:
    def test_file_locked_by_someone_else_is_left_for_later(self, make_spool, folder):
        make_spool(1).close()
        (path,) = folder.rglob("*.spool")
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN IMMEDIATE")
        later = make_spool()
        assert later.take_over() == []
        reader.close()
        assert len(later.take_over()) == 1

    def test_lock_is_not_waited_for(self, make_spool, monkeypatch):
        monkeypatch.setattr(spool_module, "_LOCK_WAIT_SECONDS", 0.01)
        connect, holders = sqlite3.connect, []

        def lock_first(path, **options):
            holders.append(connect(path, isolation_level=None))
            holders[0].execute("BEGIN EXCLUSIVE")
            return connect(path, **options)

        spool = make_spool()
        with monkeypatch.context() as locked:
            locked.setattr(sqlite3, "connect", lock_first)
            with pytest.raises(TelemetryError, match="locked") as caught:
                spool.append(record(1))
        holders[0].close()
        assert caught.value.code == "spool_failed"
        spool.append(record(1))
        assert drain(spool) == records(1)

    def test_read_only_file_stays_and_is_no_obstacle(self, make_spool, monkeypatch):
        make_spool(1).close()
        make_spool(2).close()
        connect = sqlite3.connect

        def read_only(path, **options):
            if "-" in path.name and path.name.startswith("00000001"):
                return connect(f"file:{path}?mode=ro", uri=True, **options)
            return connect(path, **options)

        later = make_spool()
        with monkeypatch.context() as mounted:
            mounted.setattr(sqlite3, "connect", read_only)
            found = later.take_over()
        assert [drain(file) for file, _ in found] == [records(2)]
        assert later.counters.health.send_failures == 1
        assert [drain(file) for file, _ in later.take_over()] == [records(1)]

    def test_folder_that_cannot_be_made_is_a_failure_with_a_code(self, make_spool, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(TelemetryError) as caught:
            make_spool(1, spool_directory=tmp_path / "file")
        assert caught.value.code == "spool_failed"

    def test_link_in_the_temporary_folder_is_not_followed(self, make_spool, tmp_path, folder):
        spool = make_spool()
        (tmp_path / "elsewhere").mkdir()
        folder.mkdir()
        spool._folder.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(TelemetryError, match="another user"):
            spool.append(record(1))

    @pytest.mark.parametrize("damage", [b"", b"no database" * 1000, bytes(8192)])
    def test_damaged_file_is_deleted_and_the_others_are_delivered(self, make_spool, folder, damage):
        make_spool(1).close()
        (path,) = folder.rglob("*.spool")
        make_spool(2).close()
        path.write_bytes(damage)
        ((file, _),) = make_spool().take_over()
        assert drain(file) == records(2)
        assert not path.exists()

    @pytest.mark.parametrize(
        ("change", "is_kept"),
        [("UPDATE owner SET info = '{'", False), ("PRAGMA user_version = 99", True)],
    )
    def test_only_the_file_of_a_later_version_is_kept(self, make_spool, folder, change, is_kept):
        make_spool(1).close()
        (path,) = folder.rglob("*.spool")
        db = sqlite3.connect(path, isolation_level=None)
        db.execute(change)
        db.close()
        later = make_spool()
        assert later.take_over() == []
        assert path.exists() is is_kept
        assert later.counters.health.send_failures == (not is_kept)

    def test_own_file_that_is_damaged_is_replaced_and_counted(self, make_spool):
        spool = make_spool(1)
        spool._file._db.execute("DELETE FROM records")
        with pytest.raises(TelemetryError, match="lacks 1 records"):
            spool.head()
        assert spool.counters.health.frames_dropped == 1
        spool.append(record(2))
        assert drain(spool) == records(2)

    def test_file_deleted_under_us_is_written_again(self, make_spool, folder, disk):
        spool = make_spool(1, 2)
        spool.pop()
        for path in folder.rglob("*.spool*"):
            path.unlink()
        next(folder.iterdir()).rmdir()
        spool.append(record(3))
        spool.close()
        ((file, _),) = make_spool().take_over()
        assert drain(file) == records(2, 3)

    def test_full_disk_refuses_a_record_and_keeps_the_others(self, make_spool, disk):
        spool = make_spool(1)
        db = spool._file._db
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(TelemetryError, match="full"):
            spool.append(record(2, 100_000))
        db.execute("PRAGMA max_page_count = 100000")
        spool.append(record(3))
        assert drain(spool) == records(1, 3)
        assert spool.counters.health.frames_spooled == 2

    def test_record_that_the_disk_does_not_delete_is_not_sent_again(self, make_spool):
        spool = make_spool(1, 2, 3)
        spool._file._db.execute("PRAGMA query_only = ON")
        spool.pop()
        spool._file._db.execute("PRAGMA query_only = OFF")
        assert spool.head() == record(2)
        spool.pop()
        spool.close()
        ((file, _),) = make_spool().take_over()
        assert drain(file) == records(3)


def test_training_never_waits_for_a_lock_that_hangs(settings, collector, kit, monkeypatch):
    """As on a network file system whose lock server is gone."""
    is_hanging, released, users = threading.Event(), threading.Event(), set()
    connect = sqlite3.connect

    def hang(*args, **options):
        users.add(threading.current_thread().name)
        is_hanging.set()
        released.wait()
        return connect(*args, **options)

    monkeypatch.setattr(sqlite3, "connect", hang)
    collector.faults.append(kit.gone)
    reporter = Reporter(
        "http://127.0.0.1:1",
        kit.make_register(),
        token=None,
        clock=SystemClock(),
        transport=collector,
        settings=replace(settings, register_wait_seconds=0.0),
        on_answer=lambda answer: None,
    )
    reporter.start()
    reporter.put(kit.Pending(0))
    assert is_hanging.wait(30)
    for step in range(1, 10_000):
        reporter.put(kit.Pending(step))
    reporter.marker(Marker(kind=MarkerKind.LR_CHANGE, step=1))
    reporter.begin_attempt("a" * 32, AttemptStart(from_step=7))
    reporter.result(kit.make_result())
    reporter.set_snapshots(())
    reporter.set_state(RunState.PAUSED, 7)
    reporter.close(RunState.FAILED, timeout_seconds=0.1)
    assert reporter._thread.is_alive()
    released.set()
    reporter._thread.join(30)
    assert not reporter._thread.is_alive()
    assert users == {"stabilizer-sender"}


@pytest.mark.parametrize(
    ("path", "is_local"),
    [
        ("/tmp/spool", True),
        ("/mnt/fast disk/spool", True),
        ("/mnt/fast", False),
        ("/home/me/spool", False),
        ("/home/local/me", True),
        ("/lustre/me", False),
        ("/gpfs/me", False),
        ("/smb/me", False),
        ("/ssh/me", False),
    ],
)
def test_kind_of_file_system_is_that_of_the_nearest_mount(tmp_path, path, is_local):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/vda / ext4 rw 0 0\n"
        "tmpfs /tmp tmpfs rw 0 0\n"
        "server:/fast /mnt nfs4 rw 0 0\n"
        "/dev/vdb /mnt/fast\\040disk xfs rw 0 0\n"
        "server:/home /home nfs rw 0 0\n"
        "/dev/vdc /home/local ext4 rw 0 0\n"
        "fs /lustre lustre rw 0 0\n"
        "fs /gpfs gpfs rw 0 0\n"
        "//server/x /smb cifs rw 0 0\n"
        "sshfs /ssh fuse.sshfs rw 0 0\n"
    )
    assert is_on_local_disk(Path(path), mounts) is is_local


def test_unknown_mounts_are_not_local(tmp_path):
    assert not is_on_local_disk(tmp_path, tmp_path / "missing")
