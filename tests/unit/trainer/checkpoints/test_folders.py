from __future__ import annotations

import pytest

from trainer.checkpoints.folders import (
    CheckpointError,
    begin_folder,
    check_files,
    commit_folder,
    part_of,
    read_manifest,
    remove_folder,
    sweep,
)


@pytest.fixture
def write(tmp_path):
    def write_folder(name="one", **files):
        folder = tmp_path / name
        part = begin_folder(folder)
        for file, text in files.items():
            (part / "inner").mkdir(exist_ok=True)
            (part / "inner" / file).write_text(text)
        commit_folder(folder, {"step": 3})
        return folder

    return write_folder


def test_a_folder_is_there_as_a_whole(write):
    folder = write(a="x", b="y")
    assert read_manifest(folder)["step"] == 3
    assert set(read_manifest(folder)["files"]) == {"inner/a", "inner/b"}
    check_files(folder)
    assert not part_of(folder).exists()


def test_before_the_commit_there_is_no_folder(tmp_path):
    part = begin_folder(tmp_path / "one")
    (part / "a").write_text("x")
    assert not (tmp_path / "one").exists()


def test_what_a_broken_write_has_left_is_not_taken_over(tmp_path):
    (begin_folder(tmp_path / "one") / "old").write_text("x")
    part = begin_folder(tmp_path / "one")
    commit_folder(tmp_path / "one", {})
    assert not part.exists()
    assert read_manifest(tmp_path / "one")["files"] == {}


def test_a_folder_of_the_same_name_is_replaced(write):
    write(a="x")
    folder = write(b="y")
    assert sorted(path.name for path in (folder / "inner").iterdir()) == ["b"]


def test_damage_is_found(write):
    folder = write(a="xyz", b="y")
    (folder / "inner" / "a").write_text("xyw")
    with pytest.raises(CheckpointError, match="inner/a is damaged: 3 bytes"):
        check_files(folder)


def test_ranks_share_the_looking(write):
    folder = write(a="x", b="y")
    (folder / "inner" / "b").unlink()
    check_files(folder, part=0, parts=2)
    with pytest.raises(CheckpointError, match="inner/b cannot be read"):
        check_files(folder, part=1, parts=2)


@pytest.mark.parametrize("text", ["", "[]", '{"format": "another"}', "\x00"])
def test_a_folder_without_our_manifest_is_none_of_ours(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="is not a checkpoint of"):
        read_manifest(tmp_path)


def test_leftovers_are_swept_and_nothing_else(write, tmp_path):
    folder = write(a="x")
    begin_folder(tmp_path / "two")
    (tmp_path / ".hidden").mkdir()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, ".hidden"}


def test_a_removed_folder_is_gone_even_where_an_earlier_removal_broke_off(write, tmp_path):
    (tmp_path / ".one.trash").mkdir()
    remove_folder(write(a="x"))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        begin_folder(tmp_path / "file" / "one")
