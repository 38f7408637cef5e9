"""Two gloo ranks: one command, the same boundary on both, and in step bit for bit afterwards."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def run(start_ranks, tmp_path_factory):
    """Reports of both ranks by the name of a plan; all plans run one after the other."""
    outs = [tmp_path_factory.mktemp("ranks") / f"{rank}.json" for rank in range(2)]
    start_ranks("rank.py", outs)
    reports = [json.loads(out.read_text()) for out in outs]
    return lambda plan: [report[plan] for report in reports]


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
    assert rewound[0]["weights"] == rewound[1]["weights"]


def test_a_cut_is_in_effect_from_the_same_step_on_both(run):
    reference, cut = run("undisturbed"), run("cut")
    assert cut[0]["results"][0]["read_back"]["lr"] == {"0": 0.005}
    assert cut[0]["weights"] == cut[1]["weights"]
    for mine, undisturbed in zip(cut, reference, strict=True):
        # Offered after step 5, in effect from the step after step 6.
        same = [item for item in undisturbed["history"] if item[0] <= 6]
        assert mine["history"][: len(same)] == same
        assert mine["history"] != undisturbed["history"]


def test_a_refusal_touches_no_rank(run):
    reference, refused = run("undisturbed"), run("unknown")
    assert [r["reason"] for r in refused[0]["results"]] == ["unknown_snapshot"]
    assert [r["history"] for r in refused] == [r["history"] for r in reference]
    assert [r["weights"] for r in refused] == [r["weights"] for r in reference]


def test_both_ranks_stop_at_the_same_boundary(run):
    stopped = run("stop")
    assert stopped[0]["results"][0]["state"] == "applied"
    assert [max(step for step, _, _ in r["history"]) for r in stopped] == [6, 6]


def test_ranks_pause_together_and_resume(run):
    reference, paused = run("undisturbed"), run("pause")
    assert [r["state"] for r in paused[0]["results"]] == ["applied"] * 3
    assert [r["weights"] for r in paused] == [r["weights"] for r in reference]
