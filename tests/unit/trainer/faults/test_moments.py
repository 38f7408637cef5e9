"""Lost and stale moments, with Adam on a job that is not ours."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback

from stabilizer.errors import ConfigurationError
from trainer.faults import LostMoments, StaleMoments


class Moments(Callback):
    """State of the head's weight at the start of each step, behind the faults."""

    def __init__(self):
        self.seen = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        state = trainer.optimizers[0].state.get(pl_module.head.weight, {})
        self.seen[trainer.global_step] = {name: value.clone() for name, value in state.items()}


@pytest.fixture
def moments(kit):
    """Return a function that trains with Adam and gives the moments by step."""

    def run(*faults, **options):
        seen = Moments()
        module = kit.Foreign(optimizer=torch.optim.Adam, rate=1e-2)
        kit.train(*faults, seen, module=module, **options)
        return seen.seen

    return run


@pytest.mark.parametrize("keep_count", [True, False])
def test_lost_moments_are_zero(moments, keep_count):
    state = moments(LostMoments(step=3, which="both", keep_count=keep_count))[3]
    assert not state["exp_avg"].any()
    assert not state["exp_avg_sq"].any()
    assert float(state["step"]) == (3.0 if keep_count else 0.0)


@pytest.mark.parametrize(("which", "lost"), [("first", "exp_avg"), ("second", "exp_avg_sq")])
def test_the_other_moments_stay(moments, which, lost):
    state = moments(LostMoments(step=3, which=which))[3]
    assert [name for name in ("exp_avg", "exp_avg_sq") if not state[name].any()] == [lost]


def test_without_second_moments_the_next_step_is_too_large_by_what_is_documented(kit):
    def step_length(*faults):
        optimizer = partial(torch.optim.Adam, betas=(0.0, 0.9))
        module = kit.Foreign(optimizer=optimizer, rate=1e-6, schedule=False)
        weights = [w["head.weight"] for w in kit.seen(*faults, steps=39, module=module).weights]
        return (weights[38] - weights[37]).abs()

    # Without a first moment the step after the loss is exactly sqrt(1 / (1 - beta2)) of the rate.
    lost = step_length(LostMoments(step=37))
    assert torch.allclose(lost, torch.full_like(lost, 10**0.5 * 1e-6), rtol=0.1)
    assert float(step_length().mean()) < 1.5e-6


def test_stale_moments_are_those_of_an_earlier_step(moments):
    seen, calm = moments(StaleMoments(step=4, age=2)), moments()
    assert torch.equal(seen[4]["exp_avg"], calm[2]["exp_avg"])
    assert torch.equal(seen[4]["exp_avg_sq"], calm[2]["exp_avg_sq"])
    assert not torch.equal(seen[4]["exp_avg"], calm[4]["exp_avg"])
    assert float(seen[4]["step"]) == 4.0


def test_stale_moments_come_back_once(moments, kit):
    seen = moments(StaleMoments(step=3, age=1), kit.RewindOnce(2, 4), steps=5)
    calm = moments(kit.RewindOnce(2, 4), steps=5)
    assert torch.equal(seen[3]["exp_avg"], calm[3]["exp_avg"])  # of the second time


@pytest.mark.parametrize("fault", [LostMoments(step=2), StaleMoments(step=2, age=1)])
def test_an_optimizer_without_moments_is_reported(kit, fault):
    with pytest.raises(ConfigurationError, match=r"keep no .*moments"):
        kit.train(fault)


@pytest.mark.parametrize("age", [0, 3])
def test_an_impossible_age_is_refused(age):
    with pytest.raises(ValueError, match="age"):
        StaleMoments(step=3, age=age)
