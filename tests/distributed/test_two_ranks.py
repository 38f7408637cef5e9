"""Two gloo ranks: one command, the same boundary on both, and in step bit for bit afterwards."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.distributed.sharded_jobs import PlainNet, train_plain

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def ran(start_ranks, tmp_path_factory):
    """Reports of both ranks by strategy and plan; all plans run one after the other."""
    outs = [tmp_path_factory.mktemp("ranks") / f"{rank}.json" for rank in range(2)]
    start_ranks("rank.py", outs, outs[0].parent)
    reports = [json.loads(out.read_text()) for out in outs]
    return lambda name: [report[name] for report in reports]


@pytest.fixture(params=["ddp", "fsdp2"])
def run(request, ran):
    """Reports of both ranks by the name of a plan, under each strategy."""
    return lambda plan: ran(f"{request.param}/{plan}")


def test_both_ranks_roll_back_at_the_same_boundary_and_stay_in_step(run):
    reference, rewound = run("undisturbed"), run("rollback")
    (result,) = rewound[0]["results"]
    # Offered after step 7, agreed on during step 8, applied after it.
    assert (result["state"], result["applied_step"], result["read_back"]["step"]) == (
        "applied", 8, 4,
    )  # fmt: skip
    for mine, undisturbed in zip(rewound, reference, strict=True):
        steps = [step for step, _, _ in mine["history"]]
        back = next(i for i in range(1, len(steps)) if steps[i] < steps[i - 1])
        assert steps[back - 1 : back + 1] == [7, 4]
        expected = [item for item in undisturbed["history"] if item[0] >= 4]
        assert mine["history"][back:] == expected
        assert mine["weights"] == undisturbed["weights"]


def test_a_cut_is_in_effect_from_the_same_step_on_both(run):
    reference, cut = run("undisturbed"), run("cut")
    assert cut[0]["results"][0]["read_back"]["lr"] == {"0": 0.005}
    for mine, undisturbed in zip(cut, reference, strict=True):
        # Offered after step 5, in effect from the step after step 6.
        same = [item for item in undisturbed["history"] if item[0] <= 6]
        assert mine["history"][: len(same)] == same
        assert mine["history"] != undisturbed["history"]


def test_replicas_stay_equal(ran):
    for plan in ("rollback", "cut"):
        first, second = ran(f"ddp/{plan}")
        assert first["weights"] == second["weights"]


def test_a_refusal_touches_no_rank(run):
    reference, refused = run("undisturbed"), run("refused")
    assert refused[0]["results"][0]["reason"] == "unknown_snapshot"
    assert {result["state"] for result in refused[0]["results"]} == {"rejected"}
    assert [r["history"] for r in refused] == [r["history"] for r in reference]
    assert [r["weights"] for r in refused] == [r["weights"] for r in reference]


def test_one_rank_refuses_for_all(ran):
    """A part that is not finite, before and after rank 0 knows; then a part that does not fit."""
    _, *results = ran("fsdp2/refused")[0]["results"]
    assert [(result["reason"], result["message"]) for result in results] == [
        ("snapshot_not_finite", "rejected by another rank"),
        ("snapshot_not_finite", "snapshot step6-4 holds NaN or Inf"),
        ("unsupported", "rejected by another rank"),
    ]


def test_a_layout_that_cannot_be_copied_is_refused(ran):
    reference, refused = ran("fsdp2/undisturbed"), ran("fsdp2/pending")
    (result,) = refused[0]["results"]
    assert (result["state"], result["reason"]) == ("rejected", "unsupported")
    assert "extra is distributed as P" in result["message"]
    assert [r["history"] for r in refused] == [r["history"] for r in reference]


def test_ranks_write_a_checkpoint_and_stop_at_the_same_boundary(run):
    stopped = run("stop")
    saved, ended = stopped[0]["results"]
    assert (saved["state"], ended["state"]) == ("applied", "applied")
    path = Path(saved["read_back"]["checkpoint_path"])
    assert path.is_file() or len(list(path.glob("*.distcp"))) == 2
    assert [max(step for step, _, _ in r["history"]) for r in stopped] == [6, 6]


def test_ranks_pause_together_and_resume(run):
    reference, paused = run("undisturbed"), run("pause")
    assert [r["state"] for r in paused[0]["results"]] == ["applied"] * 3
    assert [r["weights"] for r in paused] == [r["weights"] for r in reference]


def test_shards_are_trained_as_without_the_agent(ran):
    with_agent, without = ran("fsdp2/undisturbed"), ran("fsdp2/unwatched")
    assert [r["history"] for r in with_agent] == [r["history"] for r in without]
    assert [r["weights"] for r in with_agent] == [r["weights"] for r in without]
    assert len(with_agent[0]["weights"]["head.weight"]) == 16
    assert with_agent[1]["weights"]["head.weight"] == []  # one row: nothing is left for rank 1


def test_shards_skip_the_same_data_after_a_rollback(ran):
    reference, skipped = ran("fsdp2/undisturbed"), ran("fsdp2/skip")
    (result,) = skipped[0]["results"]
    assert (result["state"], result["read_back"]["skipped_samples"]) == ("applied", 16)
    for mine, undisturbed in zip(skipped, reference, strict=True):
        steps = [step for step, _, _ in mine["history"]]
        back = next(i for i in range(1, len(steps)) if steps[i] < steps[i - 1])
        assert steps[back] == 4
        passed_over = [ids for step, ids, _ in undisturbed["history"] if step == 5]
        assert [ids for step, ids, _ in mine["history"][back:] if step == 4] == passed_over


def test_gradient_norms_of_shards_are_those_of_one_process(ran):
    _, alone = train_plain(PlainNet)
    assert len(alone) == 10
    assert set(alone[-1]) == {"grad_norm/", "nonfinite/", "grad_norm/core.layers.0.fc2"}
    first, second = ran("norms")
    assert second == []
    for mine, expected in zip(first, alone, strict=True):
        assert mine == pytest.approx(expected, rel=1e-5)


def test_a_gradient_that_is_not_finite_on_one_rank_shows_on_the_first(ran):
    norms = ran("nan")[0]
    assert [step["nonfinite/"] for step in norms[:4]] == [0] * 4
    assert norms[4]["nonfinite/"] == 1
    assert math.isnan(norms[4]["grad_norm/"])
    assert norms[5]["nonfinite/"] > 1  # the weights are lost


def test_the_guard_skips_the_step_on_all_ranks(ran):
    norms, undisturbed = ran("guarded")[0], ran("norms")[0]
    assert [step["nonfinite/"] for step in norms] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert norms[:4] == undisturbed[:4]


def test_a_sharded_loop_by_hand_rolls_back_to_the_bit(ran):
    for mine, undisturbed in zip(ran("loop-rewound"), ran("loop"), strict=True):
        assert [step for step, _, _ in mine["history"]] == [1, 2, 3, 4, 5, 6, *range(3, 11)]
        assert mine["history"][6:] == undisturbed["history"][2:]
        assert mine["weights"] == undisturbed["weights"]
