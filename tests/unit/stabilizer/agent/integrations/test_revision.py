from __future__ import annotations

import pytest

from stabilizer.agent.integrations.job import git_revision

HASH = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def git(tmp_path):
    folder = tmp_path / ".git"
    (folder / "refs/heads").mkdir(parents=True)
    return folder


def test_a_branch_is_followed_from_a_folder_below(git, tmp_path):
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "refs/heads/main").write_text(HASH + "\n")
    below = tmp_path / "a/b"
    below.mkdir(parents=True)
    assert git_revision(below) == HASH


def test_a_detached_head_is_the_revision(git, tmp_path):
    (git / "HEAD").write_text(HASH + "\n")
    assert git_revision(tmp_path) == HASH


def test_packed_references_are_read(git, tmp_path):
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text(
        f"# pack-refs\n{'f' * 40} refs/heads/x\n{HASH} refs/heads/main\n"
    )
    assert git_revision(tmp_path) == HASH


def test_a_worktree_points_to_its_folder(git, tmp_path):
    work = tmp_path / "work"
    own = git / "worktrees/work"
    own.mkdir(parents=True)
    work.mkdir()
    (work / ".git").write_text(f"gitdir: {own}\n")
    (own / "HEAD").write_text("ref: refs/heads/side\n")
    (own / "commondir").write_text("../..\n")
    (git / "refs/heads/side").write_text(HASH)
    assert git_revision(work) == HASH


@pytest.mark.parametrize("head", [None, "", "ref: refs/heads/none", "nonsense", b"\xff\xfe"])
def test_what_cannot_be_read_is_none(git, tmp_path, head):
    if isinstance(head, bytes):
        (git / "HEAD").write_bytes(head)
    elif head is not None:
        (git / "HEAD").write_text(head)
    assert git_revision(tmp_path) is None


def test_a_reference_with_nonsense_is_none(git, tmp_path):
    (git / "HEAD").write_text("ref: refs/heads/main")
    (git / "refs/heads/main").write_text("nonsense")
    assert git_revision(tmp_path) is None


def test_outside_of_a_repository_there_is_none(tmp_path):
    assert git_revision(tmp_path) is None
