"""Four gloo ranks: hybrid sharding, and FSDP2 over tensor parallelism."""

from __future__ import annotations

import json

import pytest

from tests.distributed.sharded_jobs import PlainNet, train_plain

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def ran(start_ranks, tmp_path_factory):
    """Reports of all ranks by mesh and plan."""
    outs = [tmp_path_factory.mktemp("ranks") / f"{rank}.json" for rank in range(4)]
    start_ranks("mesh_rank.py", outs, ranks=4)
    reports = [json.loads(out.read_text()) for out in outs]
    return lambda name: [report[name] for report in reports]


@pytest.fixture(params=["hsdp", "tensor"])
def run(request, ran):
    """Reports of all ranks by the name of a plan, on each mesh."""
    return lambda plan: ran(f"{request.param}/{plan}")


def test_a_rollback_is_exact_on_a_mesh(run):
    reference, rewound = run("undisturbed"), run("rollback")
    (result,) = rewound[0]["results"]
    assert (result["state"], result["applied_step"]) == ("applied", 6)
    assert (result["read_back"]["step"], result["read_back"]["samples"]) == (2, 16)
    for mine, undisturbed in zip(rewound, reference, strict=True):
        steps = [step for step, _, _ in mine["history"]]
        assert steps[6] == 2
        assert mine["history"][6:] == undisturbed["history"][2:]
        assert mine["weights"] == undisturbed["weights"]


def test_gradient_norms_on_a_mesh_are_those_of_one_process(run):
    _, alone = train_plain(PlainNet)
    first, *others = run("undisturbed")
    assert [rank["norms"] for rank in others] == [[]] * 3
    assert len(first["norms"]) == len(alone) == 10
    for mine, expected in zip(first["norms"], alone, strict=True):
        assert mine == pytest.approx(expected, rel=1e-5)
