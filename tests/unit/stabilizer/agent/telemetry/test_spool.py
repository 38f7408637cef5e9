"""Records on disk: in order, bounded, and whole after a crash."""

import errno
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from stabilizer.agent.telemetry.counters import Counters
from stabilizer.agent.telemetry.disk.backlog import Backlog
from stabilizer.agent.telemetry.disk.records import Record, RecordKind
from stabilizer.agent.telemetry.disk.segments import SegmentQueue, encode_record
from stabilizer.agent.telemetry.disk.spool import SessionInfo, SessionLock, Spool
from stabilizer.errors import TelemetryError


def record(number, size=100, kind=RecordKind.BATCH):
    return Record(kind, 1, 1, number.to_bytes(4, "little") * (size // 4))


def drain(queue):
    found = []
    while (head := queue.head()) is not None:
        found.append(head)
        queue.pop()
    return found


@pytest.fixture
def lost():
    return []


@pytest.fixture
def queue(tmp_path, lost):
    queue = SegmentQueue(tmp_path, 1000, lost.append)
    yield queue
    queue.clear()


@pytest.fixture
def make_spool(settings, kit):
    made = []

    def make(key="7", **changes):
        counters = Counters()
        spool = Spool(replace(settings, **changes), "a run", key, counters)
        spool.info = SessionInfo(message=kit.make_register(key=key))
        spool.counters = counters
        made.append(spool)
        return spool

    yield make
    for spool in made:
        spool.close()


class TestSegmentQueue:
    def test_first_in_first_out_over_many_files(self, queue, tmp_path):
        records = [record(number) for number in range(50)]
        for item in records:
            queue.append(item)
        assert len(list(tmp_path.glob("*.seg"))) > 3
        assert drain(queue) == records
        assert list(tmp_path.iterdir()) == []

    def test_reading_and_writing_in_turn(self, queue):
        for number in range(30):
            queue.append(record(number))
            assert queue.head() == record(number)
            queue.pop()
        assert queue.head() is None
        assert queue.num_bytes == 0

    def test_later_process_reads_what_was_written(self, queue, tmp_path, lost):
        records = [record(number) for number in range(20)]
        for item in records:
            queue.append(item)
        later = SegmentQueue(tmp_path, 1000, lost.append)
        later.load()
        assert later.num_frames == 20
        assert drain(later) == records

    @pytest.mark.parametrize("cut", [1, 50, 99, 110])
    def test_tail_cut_off_by_a_crash_is_ignored(self, queue, tmp_path, lost, cut):
        for number in range(3):
            queue.append(record(number))
        file = tmp_path / "00000001.seg"
        file.write_bytes(file.read_bytes()[:-cut])
        later = SegmentQueue(tmp_path, 1000, lost.append)
        later.load()
        assert drain(later) == [record(0), record(1)]

    def test_flipped_bit_ends_its_file_and_is_counted(self, queue, tmp_path, lost):
        for number in range(12):
            queue.append(record(number))
        file = tmp_path / "00000001.seg"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        found = drain(queue)
        missing = 12 - len(found)
        assert found == [record(number) for number in range(12) if record(number) in found]
        assert lost == [missing] == [1]

    def test_file_that_vanished_is_counted(self, queue, tmp_path, lost):
        for number in range(12):
            queue.append(record(number))
        (tmp_path / "00000001.seg").unlink()
        found = drain(queue)
        assert lost == [12 - len(found)]
        assert found[-1] == record(11)

    def test_foreign_bytes_are_no_records(self, tmp_path, lost):
        (tmp_path / "00000001.seg").write_bytes(b"STSP" + b"\xff" * 200)
        (tmp_path / "00000002.seg").write_bytes(b"")
        queue = SegmentQueue(tmp_path, 1000, lost.append)
        queue.load()
        assert queue.head() is None

    def test_half_written_record_is_undone(self, queue, monkeypatch):
        queue.append(record(0))
        writer = queue._writer
        monkeypatch.setattr(queue, "_writer", _Half(writer))
        with pytest.raises(OSError, match="No space"):
            queue.append(record(1))
        monkeypatch.setattr(queue, "_writer", writer)
        queue.append(record(2))
        assert drain(queue) == [record(0), record(2)]

    def test_dropping_keeps_results(self, queue, lost):
        queue.append(record(0))
        queue.append(record(1, kind=RecordKind.RESULT))
        for number in range(2, 9):
            queue.append(record(number))
        assert queue.drop_oldest() == [record(1, kind=RecordKind.RESULT)]
        assert lost[0] > 0


class _Half:
    """A disk that fills up in the middle of a record."""

    def __init__(self, file):
        self.file = file

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def fileno(self):
        return self.file.fileno()

    def close(self):
        self.file.close()


class TestSpool:
    def test_is_never_larger_than_its_bound(self, make_spool):
        spool = make_spool(spool_bytes=10_000)
        for number in range(500):
            spool.append(record(number))
            assert spool.num_bytes <= 10_000
        kept = drain(spool)
        assert kept == [record(number) for number in range(500 - len(kept), 500)]
        assert spool.counters.health.frames_dropped == 500 - len(kept)
        assert len(kept) > 50

    def test_results_outlive_the_bound(self, make_spool):
        spool = make_spool(spool_bytes=10_000)
        result = record(10**6, kind=RecordKind.RESULT)
        spool.append(result)
        for number in range(500):
            spool.append(record(number))
        assert result in drain(spool)

    def test_bound_holds_for_what_others_left_as_well(self, make_spool):
        first = make_spool(spool_bytes=10_000)
        for number in range(60):
            first.append(record(number))
        first.close()
        second = make_spool(spool_bytes=10_000)
        second.take_over()
        for number in range(60):
            second.append(record(number))
            assert second.num_bytes <= 10_000
        assert len(drain(second)) == 60

    def test_later_process_takes_over_with_name_and_numbers(self, make_spool, kit):
        first = make_spool()
        first.append(record(1))
        first.info = SessionInfo(message=kit.make_register(), run_id="r", base=4)
        first.append(record(2))
        first.close()
        ((session, info),) = make_spool().take_over()
        assert (info.run_id, info.base) == ("r", 4)
        assert drain(session.queue) == [record(1), record(2)]

    def test_empty_session_leaves_nothing_behind(self, make_spool, settings):
        spool = make_spool()
        spool.append(record(1))
        spool.pop()
        spool.close()
        assert list(settings.spool_directory.rglob("session.json")) == []

    def test_runs_of_other_keys_are_left_alone(self, make_spool):
        first = make_spool(key="7")
        first.append(record(1))
        first.close()
        assert make_spool(key="8").take_over() == []

    def test_two_living_processes_do_not_share(self, make_spool, settings, kit):
        spool = make_spool()
        spool.append(record(1))
        code = (
            "import sys; from pathlib import Path\n"
            "from stabilizer.agent.telemetry.counters import Counters\n"
            "from stabilizer.agent.telemetry.disk.spool import Spool\n"
            "from stabilizer.agent.telemetry.settings import ReporterSettings\n"
            "settings = ReporterSettings(spool_directory=Path(sys.argv[1]))\n"
            "print(len(Spool(settings, 'a run', '7', Counters()).take_over()))\n"
        )
        command = [sys.executable, "-c", code, str(settings.spool_directory)]

        def ask():
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        assert ask() == "0\n"
        spool.close()
        assert ask() == "1\n"

    def test_forked_child_does_not_hold_the_lock(self, tmp_path):
        lock = SessionLock(tmp_path / "lock")
        ready, done = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            os.write(ready[1], b"x")
            os.read(done[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        lock.release()
        try:
            SessionLock(tmp_path / "lock").release()
        finally:
            os.write(done[1], b"x")
            os.waitpid(child, 0)

    def test_session_without_its_name_is_removed(self, make_spool, settings):
        first = make_spool()
        first.append(record(1))
        first.close()
        (file,) = settings.spool_directory.rglob("session.json")
        file.write_text("{")
        second = make_spool()
        assert second.take_over() == []
        assert not file.parent.exists()
        assert second.counters.health.frames_dropped == 1

    def test_tidied_up_folder_is_made_again(self, make_spool, settings):
        spool = make_spool()
        spool.append(record(1))
        for file in settings.spool_directory.rglob("0*/*"):
            file.unlink()
        next(settings.spool_directory.rglob("0*")).rmdir()
        spool.append(record(2))
        assert drain(spool) == [record(2)]
        assert spool.counters.health.frames_dropped == 1

    def test_record_beyond_the_bound_is_refused(self, make_spool):
        with pytest.raises(TelemetryError, match="does not fit into 50") as caught:
            make_spool(spool_bytes=50).append(record(1))
        assert caught.value.code == "spool_failed"

    def test_link_in_the_temporary_folder_is_not_followed(self, make_spool, settings, tmp_path):
        spool = make_spool()
        (tmp_path / "elsewhere").mkdir()
        settings.spool_directory.mkdir()
        spool._folder.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(TelemetryError, match="another user"):
            spool.append(record(1))

    def test_folder_that_cannot_be_made_is_a_failure_with_a_code(self, make_spool, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(TelemetryError) as caught:
            make_spool(spool_directory=tmp_path / "file").append(record(1))
        assert caught.value.code == "spool_failed"


class TestBacklog:
    def test_full_disk_keeps_the_order_and_is_tried_again(self, make_spool, monkeypatch):
        spool = make_spool()
        backlog = Backlog(spool, spool.counters)
        backlog.append(record(0))
        backlog.spill(0.0)
        append, full = spool.append, True

        def fail(item):
            if full:
                raise TelemetryError("full", code="spool_failed")
            append(item)

        monkeypatch.setattr(spool, "append", fail)
        for number in range(1, 9):
            backlog.append(record(number))
            backlog.spill(1.0)
        assert not backlog.has_room
        assert spool.counters.health.send_failures == 1
        full = False
        backlog.spill(2.0)
        assert not backlog.has_room
        backlog.spill(32.0)
        found = []
        while (head := backlog.head(33.0)) is not None:
            found.append(head)
            backlog.pop(head, 33.0)
        assert found == [record(number) for number in range(9)]

    def test_end_without_a_disk_is_counted(self, make_spool):
        spool = make_spool(spool_bytes=0)
        backlog = Backlog(spool, spool.counters)
        backlog.append(record(0))
        backlog.close(0.0)
        assert spool.counters.health.frames_dropped == 1

    def test_disk_that_cannot_be_read_is_passed_by_and_tried_again(self, make_spool, monkeypatch):
        spool = make_spool()
        backlog = Backlog(spool, spool.counters)
        backlog.append(record(0))
        backlog.spill(0.0)
        backlog.append(record(1))

        def fail():
            raise TelemetryError("unreadable", code="spool_failed")

        with monkeypatch.context() as broken:
            broken.setattr(spool, "head", fail)
            assert backlog.head(1.0) == record(1)
        assert backlog.head(2.0) == record(1)
        assert backlog.head(32.0) == record(0)


def test_size_on_disk_is_what_is_documented():
    assert len(encode_record(record(1, size=100))) == 4 + 13 + 4 + 100
