"""A growing file, in every format."""

import pytest

from stabilizer.logs.formats import FORMATS
from stabilizer.logs.tail import LogTail
from tests.unit.stabilizer.logs.writers import ROWS, WRITERS, write

LINES = sorted(name for name, format_ in FORMATS.items() if not format_.is_document)
DOCUMENTS = sorted(name for name, format_ in FORMATS.items() if format_.is_document)
each_format = pytest.mark.parametrize("name", sorted(FORMATS))
each_line_format = pytest.mark.parametrize("name", LINES)


def steps(tail):
    return sorted({row.step for row in tail.poll()})


@each_format
def test_a_file_may_come_later(tmp_path, name):
    tail = LogTail(tmp_path / WRITERS[name][0])
    assert steps(tail) == []
    write(tmp_path, name, ROWS)
    assert steps(tail) + steps(tail) == list(range(1, 9))
    assert steps(tail) == []
    tail.close()


@each_format
def test_only_what_is_new_is_read(tmp_path, name):
    write(tmp_path, name, ROWS[:3])
    tail = LogTail(tmp_path / WRITERS[name][0])
    assert steps(tail) + steps(tail) == [1, 2, 3]
    write(tmp_path, name, ROWS)
    assert steps(tail) == [4, 5, 6, 7, 8]
    tail.close()


@each_line_format
def test_half_a_line_waits_for_its_end(tmp_path, name):
    data = WRITERS[name][1](ROWS)
    path = tmp_path / WRITERS[name][0]
    tail, found = LogTail(path, FORMATS[name]), []
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(data), 13):
            file.write(data[start : start + 13])
            found += [row.step for row in tail.poll()]
    assert sorted(set(found)) == list(range(1, 9))
    assert tail.problems.bad_lines == 0
    tail.close()


@each_line_format
def test_a_rotated_file_is_read_to_its_end_and_then_the_new_one(tmp_path, name):
    path = write(tmp_path, name, ROWS[:2])
    tail = LogTail(path)
    assert steps(tail) == [1, 2]
    write(tmp_path, name, ROWS[:4])
    path.rename(tmp_path / "old")
    write(tmp_path, name, ROWS[4:])
    assert steps(tail) == list(range(3, 9))
    tail.close()


@each_line_format
def test_a_truncated_file_is_read_from_its_start(tmp_path, name):
    path = write(tmp_path, name, ROWS)
    tail = LogTail(path)
    assert steps(tail) == list(range(1, 9))
    write(tmp_path, name, ROWS[:2])
    assert steps(tail) == [1, 2]
    tail.close()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_of_a_restarted_job(tmp_path, name):
    tail = LogTail(write(tmp_path, name, ROWS))
    assert steps(tail) + steps(tail) == list(range(1, 9))
    write(tmp_path, name, ROWS[:5])  # resumed from step 5
    assert steps(tail) == []
    write(tmp_path, name, ROWS[:7])
    assert steps(tail) == [6, 7]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_that_is_being_written_is_read_when_it_is_whole(tmp_path, name):
    path = write(tmp_path, name, ROWS[:3])
    tail = LogTail(path)
    assert steps(tail) + steps(tail) == [1, 2, 3]
    whole = WRITERS[name][1](ROWS)
    path.write_bytes(whole[: len(whole) // 2])
    assert steps(tail) == []
    path.write_bytes(whole)
    assert steps(tail) == [4, 5, 6, 7, 8]
