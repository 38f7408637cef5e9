import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabilizer.errors import ConfigurationError
from trainer.data.selection import Quarantine, add_to_quarantine, read_quarantine


@pytest.fixture
def file(tmp_path):
    return tmp_path / "quarantine.jsonl"


def test_documents_and_positions_are_held(file):
    file.write_text('{"sample_id": "web/a:1", "remark": "spam"}\n\n{"positions": [3, 5]}\n')
    quarantine = read_quarantine(file)
    assert quarantine.holds(99, "web/a:1")
    assert not quarantine.holds(99, "web/a:2")
    assert [p for p in range(8) if quarantine.holds(p, "web/b:0")] == [3, 4]


windows = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 10)).map(lambda w: (w[0], w[0] + w[1])), max_size=8
)


@given(windows=windows)
def test_windows_may_overlap(windows, tmp_path_factory):
    file = tmp_path_factory.mktemp("windows") / "quarantine.jsonl"
    file.write_text("".join(json.dumps({"positions": window}) + "\n" for window in windows))
    quarantine = read_quarantine(file)
    held = {p for p in range(60) if quarantine.holds_position(p)}
    assert held == {p for start, end in windows for p in range(start, end)}


@pytest.mark.parametrize(
    "line",
    [
        "x",
        "[]",
        "3",
        '{"sample": "a"}',
        '{"sample_id": 3}',
        '{"positions": [5, 5]}',
        '{"positions": [-1, 5]}',
        '{"positions": [1, 2, 3]}',
        '{"positions": ["a", "b"]}',
    ],
)
def test_a_line_that_says_something_else_is_named(file, line):
    file.write_text(f'{{"sample_id": "a"}}\n{line}\n')
    with pytest.raises(ConfigurationError, match=r"data\.quarantine: .*quarantine\.jsonl:2: "):
        read_quarantine(file)


def test_a_file_that_is_not_there_is_reported(file):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_quarantine(file)


def test_documents_are_added_once(file):
    assert add_to_quarantine(file, ["a", "b", "a"], remark="first") == ["a", "b"]
    assert add_to_quarantine(file, ["b", "c"], remark="second") == ["c"]
    assert read_quarantine(file) == Quarantine(frozenset("abc"))
    remarks = [json.loads(line)["remark"] for line in file.read_text().splitlines()]
    assert remarks == ["first", "first", "second"]


def test_a_last_line_without_an_end_stays_a_line(file):
    file.write_text('{"positions": [3, 5]}\n{"sample_id": "a"}')
    assert add_to_quarantine(file, ["a"], remark="x") == []
    assert add_to_quarantine(file, ["b"], remark="x") == ["b"]
    assert read_quarantine(file) == Quarantine(frozenset("ab"), ((3, 5),))
    assert file.read_text().count("\n") == 3


def test_a_file_of_another_kind_is_not_added_to(file):
    file.write_text("losses of a run\n")
    with pytest.raises(ConfigurationError):
        add_to_quarantine(file, ["a"], remark="x")
    assert file.read_text() == "losses of a run\n"
