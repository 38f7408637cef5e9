"""Two gloo ranks: one command, the same boundary on both, and in step bit for bit afterwards."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
RANK = Path(__file__).parent / "rank.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Reports of both ranks by the name of a plan; all plans run one after the other."""
    reports = _run(tmp_path_factory.mktemp("ranks"))
    return lambda plan: [report[plan] for report in reports]


def _run(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outs = [folder / f"{rank}.json" for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK), str(out)],
            env=os.environ
            | {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "WORLD_SIZE": "2",
                "NODE_RANK": "0",
                "LOCAL_RANK": str(rank),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    texts = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(texts)
    return [json.loads(out.read_text()) for out in outs]


def test_both_ranks_roll_back_at_the_same_boundary_and_stay_in_step(run):
    reference, rewound = run("undisturbed"), run("rollback")
    (result,) = rewound[0]["results"]
    # Offered behind step 7, agreed on during step 8, carried out behind it.
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
        # Offered behind step 5, in effect in the step that follows step 6.
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


def test_ranks_wait_together_and_go_on(run):
    reference, paused = run("undisturbed"), run("pause")
    assert [r["state"] for r in paused[0]["results"]] == ["applied"] * 3
    assert [r["weights"] for r in paused] == [r["weights"] for r in reference]
