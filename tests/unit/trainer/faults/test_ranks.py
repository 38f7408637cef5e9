"""A slow rank, and weights that a resume does not load."""

from __future__ import annotations

import pytest
import torch

from stabilizer.errors import ConfigurationError
from trainer.faults import FreshWeights, SlowRank


@pytest.fixture
def slept(monkeypatch):
    slept = []
    monkeypatch.setattr("trainer.faults.slow_rank.time.sleep", slept.append)
    return slept


def test_the_slow_rank_waits_before_each_microbatch_of_its_steps(kit, slept):
    fault = SlowRank(step=2, seconds=3.0, steps=2)
    seen = kit.seen(fault, accumulate=2, steps=6)
    assert slept == [3.0] * 4
    assert seen.losses == kit.seen(accumulate=2, steps=6).losses


def test_the_other_ranks_do_not_wait(kit, slept):
    kit.train(SlowRank(step=1, rank=1))
    assert slept == []


@pytest.mark.parametrize("options", [{"seconds": 0}, {"seconds": float("inf")}, {"rank": -1}])
def test_impossible_values_are_refused(options):
    with pytest.raises(ValueError, match="SlowRank"):
        SlowRank(step=1, **options)


def test_a_resume_leaves_the_named_weights_fresh_and_loads_the_rest(kit, tmp_path):
    trainer = kit.train(steps=3)
    trainer.save_checkpoint(tmp_path / "at3.ckpt")
    trained = trainer.lightning_module
    fault = FreshWeights(module="head")
    module = kit.Foreign()
    first = module.head.weight.detach().clone()
    seen = kit.seen(fault, module=module, steps=4, resume=tmp_path / "at3.ckpt")
    assert fault.fired
    assert torch.equal(seen.weights[0]["head.weight"], first)
    assert torch.equal(seen.weights[0]["body.weight"], trained.body.weight)


def test_a_job_that_starts_anew_is_spared(kit):
    fault = FreshWeights()
    kit.train(fault, steps=2)
    assert not fault.fired


def test_a_module_that_does_not_exist_is_reported_before_training(kit):
    with pytest.raises(ConfigurationError, match=r"fresh_weights\.module"):
        kit.train(FreshWeights(module="none"), steps=2)
