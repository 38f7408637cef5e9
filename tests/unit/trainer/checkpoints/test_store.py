from __future__ import annotations

import pytest

from trainer.checkpoints import CheckpointError, CheckpointStore, StoredCheckpoint, find_checkpoint
from trainer.checkpoints.folders import begin_folder, commit_folder


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


@pytest.fixture
def add(store):
    def write(attempt, step, **marks):
        path = store.place(attempt, step)
        begin_folder(path)
        commit_folder(path, {})
        checkpoint = StoredCheckpoint(attempt, step, path)
        if marks:
            store.mark(checkpoint, **marks)
        return checkpoint

    return write


def steps(checkpoints):
    return [(checkpoint.attempt, checkpoint.step) for checkpoint in checkpoints]


def test_an_absent_folder_holds_nothing(store):
    assert store.all() == []
    assert store.latest() is None


def test_the_latest_is_that_of_the_newest_attempt(store, add):
    add(1, 100)
    add(1, 300)
    add(2, 200)
    (store.folder / "notes").mkdir()
    (store.folder / "attempt-1-step-900").mkdir()
    assert steps(store.all()) == [(1, 100), (1, 300), (2, 200)]
    assert store.latest().step == 200


def test_what_was_abandoned_is_not_gone_on_from(store, add):
    for step in (100, 200, 300):
        add(1, step)
    assert steps(store.abandon(150)) == [(1, 200), (1, 300)]
    assert store.latest().step == 100
    assert steps(store.abandon(150)) == []


def test_marks_add_up(store, add):
    checkpoint = add(1, 100, healthy=True)
    store.mark(checkpoint, abandoned=True)
    assert (checkpoint.is_healthy, checkpoint.is_abandoned) == (True, True)


def test_the_newest_and_the_newest_healthy_one_are_kept(store, add):
    add(1, 100, healthy=True)
    add(1, 200, healthy=True)
    for step in (300, 400, 500):
        add(1, step)
    store.tidy()
    assert steps(store.all()) == [(1, 200), (1, 400), (1, 500)]


def test_abandoned_ones_are_not_kept(store, add):
    add(1, 100)
    add(1, 200, healthy=True, abandoned=True)
    add(2, 150)
    begin_folder(store.place(2, 160))
    store.tidy()
    assert steps(store.all()) == [(1, 100), (2, 150)]
    assert sorted(path.name[0] for path in store.folder.iterdir()) == ["a", "a"]


def test_a_mark_that_cannot_be_read_is_no_mark(store, add):
    checkpoint = add(1, 100, healthy=True)
    (checkpoint.path / "health.json").write_text("[")
    assert not checkpoint.is_healthy
    (checkpoint.path / "health.json").write_text("[1]")
    assert not checkpoint.is_abandoned


def test_resume_finds_the_latest_or_the_folder(store, add, tmp_path):
    first, second = add(1, 100), add(1, 200)
    assert find_checkpoint(store, "latest") == second.path
    assert find_checkpoint(store, "auto") == second.path
    assert find_checkpoint(store, str(first.path)) == first.path


def test_resume_without_a_checkpoint_starts_anew_only_if_that_was_meant(store, tmp_path):
    assert find_checkpoint(store, "auto") is None
    with pytest.raises(CheckpointError, match=r"there is no checkpoint in .*checkpoints; allowed"):
        find_checkpoint(store, "latest")
    with pytest.raises(CheckpointError, match="none is no folder; allowed: latest, auto"):
        find_checkpoint(store, str(tmp_path / "none"))


@pytest.mark.parametrize("wanted", ["latest", "auto"])
def test_resume_passes_over_what_is_not_finite_and_says_so(store, add, caplog, wanted):
    first = add(1, 100, finite=True)
    add(1, 200, finite=False)
    assert find_checkpoint(store, wanted) == first.path
    assert "step-00000200 holds non-finite values" in caplog.text


@pytest.mark.parametrize("wanted", ["latest", "auto"])
def test_resume_does_not_start_anew_over_checkpoints_of_which_none_is_finite(store, add, wanted):
    only = add(1, 100, finite=False)
    with pytest.raises(CheckpointError, match=r"is finite; allowed: another training\.out"):
        find_checkpoint(store, wanted)
    assert find_checkpoint(store, str(only.path)) == only.path


def test_the_newest_finite_one_is_kept_though_nobody_has_called_it_healthy(store, add):
    add(1, 100, finite=True)
    add(1, 200, finite=True)
    for step in (300, 400, 500):
        add(1, step, finite=False)
    store.tidy()
    assert steps(store.all()) == [(1, 200), (1, 400), (1, 500)]


def test_what_is_known_to_be_finite_stays_known(store, add):
    checkpoint = add(1, 100, finite=False)
    store.mark(checkpoint, abandoned=True)
    assert not checkpoint.is_finite
