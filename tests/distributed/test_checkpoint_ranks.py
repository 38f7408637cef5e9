"""Two ranks whose checkpoints meet trouble: neither waits for the other for ever."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(200)]


@pytest.fixture(scope="module")
def ranks(start_ranks, tmp_path_factory):
    """What both ranks report of a job, by the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "blocked").write_text("a file is in the way")
    (folder / "untidy").mkdir()
    (folder / "elsewhere").mkdir()
    (folder / "untidy" / ".old.part").symlink_to(folder / "elsewhere")  # cannot be swept
    start_ranks(
        "checkpoint_rank.py", folder, folder / "report", "fine", "untidy", "blocked", timeout=120
    )
    reports = [json.loads((folder / f"report.{rank}").read_text()) for rank in range(2)]
    return lambda name: [report[name] for report in reports]


def test_a_rank_that_copies_its_state_alone_does_not_wait(ranks):
    first, second = ranks("fine")
    assert (first["snapshots"], second["snapshots"]) == ([], [1] * 5)
    assert first["kept"] == second["kept"] == [[3, 2], [5, 2]]


def test_a_folder_that_cannot_be_tidied_costs_no_training(ranks):
    first, second = ranks("untidy")
    assert (first["steps"], second["steps"]) == (5, 5)
    assert [step for step, _ in first["kept"]] == [3, 5]
    assert first["failures"] > 0


def test_a_checkpoint_that_rank_0_cannot_write_is_tried_again_by_both(ranks):
    first, second = ranks("blocked")
    assert (first["steps"], second["steps"]) == (5, 5)
    assert first["failures"] == 3  # at steps 3 and 5, and once more at the end
    assert first["kept"] == second["kept"] == []
