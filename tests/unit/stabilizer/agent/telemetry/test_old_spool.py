"""The spool of version 0.1 is taken over and delivered as today's agent does."""

import json
import sqlite3
import struct
import subprocess
import sys
import zlib

import pytest

from stabilizer.agent.telemetry import spool as spool_module
from stabilizer.agent.telemetry.spool import Record, RecordKind
from stabilizer.protocol.batches import AttemptStart, BatchHeader, MarkerKind, SnapshotInfo
from stabilizer.protocol.frames import decode_batch, encode_batch


def encode(kind, base, num_frames, payload):
    """Write a record as version 0.1 did."""
    fields = struct.pack("<BIII", kind, base, num_frames, len(payload))
    checksum = struct.pack("<I", zlib.crc32(payload, zlib.crc32(fields)))
    return b"STSP" + fields + checksum + payload


def old(sequence, *, attempt=3, base=3, start=None):
    """A batch of version 0.1: kind, base, number of frames, payload."""
    snapshots = (SnapshotInfo(id="s1", attempt=attempt, step=3, finite=True),)
    header = BatchHeader(
        attempt=attempt, sequence=sequence, attempt_start=start, snapshots=snapshots
    )
    return (1 if start is None else 2), base, 1, encode_batch(header, ())


def headers(file):
    found = []
    while (head := file.head()) is not None:
        found.append(decode_batch(head.payload).header)
        file.pop()
    return found


def sequences(file):
    return [header.sequence for header in headers(file)]


def files(settings):
    return [path for path in settings.spool_directory.rglob("*") if path.is_file()]


@pytest.fixture
def leave(make_spool, kit):
    """Write a folder as a process of version 0.1 did."""
    run_folder = make_spool()._folder

    def leave(*segments, **owner):
        folder = run_folder / "00000001"
        folder.mkdir(parents=True)
        (folder / "lock").touch()
        message = {"protocol_version": 1, "name": "a run", "key": "7", "start_step": 9}
        info = {"message": message, "run_id": "r", "base": 3, "starts": {}} | owner
        (folder / "session.json").write_text(json.dumps(info))
        for number, segment in enumerate(segments, start=1):
            data = b"".join(encode(*item) for item in segment)
            (folder / f"{number:08d}.seg").write_bytes(data)
        return folder

    return leave


def test_is_taken_over_before_newer_files(leave, make_spool, settings, kit):
    leave([old(0), (3, 3, 0, b"result")], [old(1)])
    make_spool(3).close()
    (first, info), (second, _) = make_spool().take_over()
    assert info.run_id == "r"
    batch, result, later = kit.drain(first)
    assert result == Record(RecordKind.RESULT, 0, b"result")
    for sequence, item in enumerate((batch, later)):
        header = decode_batch(item.payload).header
        assert (header.attempt, header.attempt_id, header.sequence) == (3, None, sequence)
        assert header.snapshots is None  # they were in the memory of that process
    assert kit.drain(second) == [kit.make_record(3)]
    assert not [path for path in files(settings) if path.suffix == ".seg"]


def test_attempt_that_the_collector_has_not_received_gets_an_id(leave, make_spool):
    start = AttemptStart(from_step=5, parent=3, reason=MarkerKind.ROLLBACK)
    later = AttemptStart(from_step=6, parent=4, reason=MarkerKind.ROLLBACK)
    leave(
        [old(7), old(0, attempt=4, start=start), old(1, attempt=4)],
        [old(0, attempt=5, start=later)],
        starts={
            "2": {"start": start.model_dump(mode="json"), "base": 3},
            "3": {"start": later.model_dump(mode="json"), "base": 3},
        },
    )
    ((file, _),) = make_spool().take_over()
    known, first, second, third = headers(file)
    assert (known.attempt, known.attempt_start) == (3, None)
    assert (first.attempt, first.attempt_start.from_step, first.attempt_start.parent) == (
        None, 5, 3,
    )  # fmt: skip
    assert (second.attempt_id, second.attempt_start) == (first.attempt_id, first.attempt_start)
    assert third.attempt_start.parent_id == first.attempt_id != third.attempt_id


def test_process_that_was_never_registered_has_ids_only(leave, make_spool):
    start = AttemptStart(from_step=5, parent=1, reason=MarkerKind.ROLLBACK)
    starts = {"2": {"start": start.model_dump(mode="json"), "base": 1}}
    batches = [old(0, attempt=1, base=1), old(0, attempt=2, base=1, start=start)]
    leave(batches, run_id=None, base=None, starts=starts)
    ((file, info),) = make_spool().take_over()
    assert info.run_id is None
    first, second = headers(file)
    assert first.attempt_start.from_step == 9
    assert second.attempt_start.parent_id == first.attempt_id
    assert (first.attempt, second.attempt) == (None, None)


def test_batch_that_cannot_be_read_is_counted(leave, make_spool):
    leave([old(0), (1, 3, 1, b"no batch"), old(1)])
    later = make_spool()
    ((file, _),) = later.take_over()
    assert sequences(file) == [0, 1]
    assert later.counters.health.frames_dropped == 1


@pytest.mark.parametrize("cut", [1, 20, 50])
def test_record_cut_off_by_a_crash_is_ignored(leave, make_spool, cut):
    path = leave([old(0), old(1), old(2)]) / "00000001.seg"
    path.write_bytes(path.read_bytes()[:-cut])
    ((file, _),) = make_spool().take_over()
    assert sequences(file) == [0, 1]


def test_flipped_bit_costs_its_record_and_is_counted(leave, make_spool):
    path = leave([old(0), old(1), old(2)]) / "00000001.seg"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # in the middle one of three
    path.write_bytes(data)
    later = make_spool()
    ((file, _),) = later.take_over()
    assert sequences(file) == [0, 2]
    assert later.counters.health.frames_dropped == 1


def test_foreign_bytes_are_no_records(leave, make_spool, settings):
    left = leave([])
    (left / "00000001.seg").write_bytes(b"STSP" + b"\xff" * 200)
    assert make_spool().take_over() == []
    assert files(settings) == []


def test_without_its_owner_it_is_deleted_and_counted(leave, make_spool):
    left = leave([old(0), old(1)])
    (left / "session.json").write_text("{")
    later = make_spool()
    assert later.take_over() == []
    assert not left.exists()
    assert later.counters.health.frames_dropped == 2


def test_folder_of_a_living_process_is_left_alone(leave, make_spool):
    left = leave([old(0)])
    code = "import fcntl, signal; fcntl.flock(0, fcntl.LOCK_EX); print(flush=True); signal.pause()"
    with (left / "lock").open("r+") as lock:
        owner = subprocess.Popen([sys.executable, "-c", code], stdin=lock, stdout=subprocess.PIPE)
        owner.stdout.readline()
    assert make_spool().take_over() == []
    owner.kill()
    owner.communicate()
    assert len(make_spool().take_over()) == 1
    assert not left.exists()


def test_full_disk_leaves_it_for_later(leave, make_spool, monkeypatch):
    left = leave([old(0)])

    def full(*args):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(spool_module.SpoolFile, "extend", full)
        assert make_spool().take_over() == []
    assert left.exists()
    ((file, _),) = make_spool().take_over()
    assert sequences(file) == [0]


def test_death_after_the_copy_doubles_nothing(leave, make_spool, monkeypatch):
    left = leave([old(0)])

    def die(folder):
        raise OSError("killed")

    first = make_spool()
    with monkeypatch.context() as broken:
        broken.setattr(spool_module.shutil, "rmtree", die)
        first.take_over()
    first.close()
    assert left.exists()
    ((file, _),) = make_spool().take_over()
    assert sequences(file) == [0]
    assert not left.exists()
