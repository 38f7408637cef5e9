from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from stabilizer.agent.control.optimizer_step import (
    GuardPolicy,
    LrOverride,
    NonfiniteGuard,
    name_groups,
)
from stabilizer.errors import ControlError
from stabilizer.protocol.commands import ReduceLrParameters


def optimizer_of(*rates, **options):
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, **options)


def take_step(optimizer, override):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    override.advance()
    return dict(override.effective)


def used(override, optimizer, steps):
    return [take_step(optimizer, override)["0"] for _ in range(steps)]


@pytest.fixture
def override():
    return LrOverride()


def test_without_a_cut_nothing_is_touched(override):
    optimizer = optimizer_of(0.1)
    rate = optimizer.param_groups[0]["lr"]
    override.attach([optimizer])
    assert used(override, optimizer, 2) == [0.1, 0.1]
    assert optimizer.param_groups[0]["lr"] is rate
    assert override.scale == 1.0
    assert not override.cuts


def test_a_cut_scales_the_update_and_leaves_the_group_as_it_was(override):
    optimizer = optimizer_of(0.5)
    override.attach([optimizer])
    override.cut(ReduceLrParameters(factor=0.5))
    parameter = optimizer.param_groups[0]["params"][0]
    take_step(optimizer, override)
    assert parameter.tolist() == [0.75, 0.75]
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert override.expected() == {"0": 0.25}


def test_a_cut_holds_then_ramps_linearly_and_ends(override):
    optimizer = optimizer_of(1.0)
    override.attach([optimizer])
    override.cut(ReduceLrParameters(factor=0.5, hold_steps=2, ramp_steps=3))
    assert used(override, optimizer, 7) == [0.5, 0.5, 0.625, 0.75, 0.875, 1.0, 1.0]
    assert not override.cuts


def test_a_cut_of_no_steps_has_no_effect(override):
    optimizer = optimizer_of(1.0)
    override.attach([optimizer])
    override.cut(ReduceLrParameters(factor=0.5, hold_steps=0))
    assert override.scale == 1.0
    assert used(override, optimizer, 2) == [1.0, 1.0]


def test_cuts_multiply_and_end_one_by_one(override):
    optimizer = optimizer_of(1.0)
    override.attach([optimizer])
    override.cut(ReduceLrParameters(factor=0.5))
    override.cut(ReduceLrParameters(factor=0.25, hold_steps=1))
    assert used(override, optimizer, 2) == [0.125, 0.5]


def test_schedulers_see_their_own_rate(override):
    plain, cut = optimizer_of(1.0), optimizer_of(1.0)
    override.attach([cut])
    override.cut(ReduceLrParameters(factor=0.5))
    schedules = [lr_scheduler.ExponentialLR(o, 0.9) for o in (plain, cut)]
    for _ in range(5):
        rate = take_step(cut, override)["0"]
        take_step(plain, LrOverride())
        assert rate == plain.param_groups[0]["lr"] * 0.5
        for schedule in schedules:
            schedule.step()
    assert cut.param_groups[0]["lr"] == plain.param_groups[0]["lr"]


def test_an_interrupted_step_leaves_no_trace(override):
    optimizer = optimizer_of(1.0)
    override.attach([optimizer])
    override.cut(ReduceLrParameters(factor=0.5))

    def closure():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert override.expected() == {"0": 0.5}
    assert take_step(optimizer, override) == {"0": 0.5}
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_detaching_in_the_middle_of_a_step_puts_the_rate_back(override):
    optimizer = optimizer_of(1.0)
    override.attach([optimizer])
    override.cut(ReduceLrParameters(factor=0.5))
    optimizer.step(override.detach)
    assert optimizer.param_groups[0]["lr"] == 1.0
    optimizer.step()
    assert override.steps_seen == 1


def test_a_rate_set_within_the_step_is_scaled_on_reassert_and_kept_afterwards(override):
    optimizer = optimizer_of(1.0)
    override.attach([optimizer])
    override.cut(ReduceLrParameters(factor=0.5))

    def closure():
        optimizer.param_groups[0]["lr"] = 0.8  # a warm-up written into the training step
        override.reassert(optimizer)

    optimizer.step(closure)
    assert override.effective == {"0": 0.4}
    assert override.broken is None
    assert optimizer.param_groups[0]["lr"] == 0.8


def test_a_rate_set_too_late_is_detected_and_kept(override):
    optimizer = optimizer_of(1.0)
    override.attach([optimizer])
    override.cut(ReduceLrParameters(factor=0.5))
    optimizer.step(lambda: optimizer.param_groups[0].update(lr=0.8))
    assert "0.8" in override.broken
    assert optimizer.param_groups[0]["lr"] == 0.8


def test_reassert_outside_of_a_step_does_nothing(override):
    optimizer = optimizer_of(1.0)
    override.attach([optimizer])
    override.cut(ReduceLrParameters(factor=0.5))
    override.reassert(optimizer)
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_a_tensor_rate_stays_the_same_tensor(override):
    parameter = torch.nn.Parameter(torch.ones(2))
    rate = torch.tensor(0.3)
    optimizer = torch.optim.Adam([parameter], lr=rate, foreach=False)
    override.attach([optimizer])
    override.cut(ReduceLrParameters(factor=1 / 3, hold_steps=1))
    assert take_step(optimizer, override)["0"].item() == pytest.approx(0.1)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == torch.tensor(0.3).item()


def test_several_groups_and_optimizers_have_names(override):
    first, second = optimizer_of(0.1, 0.2), optimizer_of(0.3)
    first.param_groups[1]["name"] = "decay"
    assert name_groups([first]) == {(0, 0): "0", (0, 1): "decay"}
    override.attach([first, second])
    override.cut(ReduceLrParameters(factor=0.5))
    assert override.expected() == {
        "0/0": 0.05, "0/decay": 0.1, "1/0": 0.15,
    }  # fmt: skip
    take_step(second, override)
    assert override.effective == {"1/0": 0.15}


def test_groups_of_one_name_get_distinct_names():
    optimizer = optimizer_of(0.1, 0.2)
    for group in optimizer.param_groups:
        group["name"] = "same"
    assert name_groups([optimizer]) == {(0, 0): "same", (0, 1): "same#0.1"}


def test_a_group_added_later_is_cut_too(override):
    optimizer = optimizer_of(0.1)
    override.attach([optimizer])
    override.cut(ReduceLrParameters(factor=0.5))
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.4})
    take_step(optimizer, override)
    assert override.effective == {"0": 0.05, "0/1": 0.2}


def test_cuts_are_saved_and_continued(override):
    override.cut(ReduceLrParameters(factor=0.5, hold_steps=3, ramp_steps=2))
    override.cut(ReduceLrParameters(factor=0.1))
    override.advance()
    fresh = LrOverride()
    fresh.load_state_dict(override.state_dict())
    for _ in range(8):
        fresh.advance()
        override.advance()
        assert fresh.scale == override.scale
    assert math.isclose(fresh.scale, 0.1)


@pytest.mark.parametrize("state", [{}, {"cuts": [{"factor": 1}]}, {"cuts": None}])
def test_a_foreign_state_is_refused(override, state):
    with pytest.raises(ControlError):
        override.load_state_dict(state)


def parameters(*values):
    made = []
    for value in values:
        parameter = nn.Parameter(torch.ones(2))
        parameter.grad = None if value is None else torch.tensor([1.0, value])
        made.append(parameter)
    return made


def test_the_default_guard_leaves_the_step_to_the_job():
    given = parameters(float("nan"))
    guard = NonfiniteGuard()
    assert guard.act(given) is False
    assert given[0].grad is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_step_changes_nothing(value):
    guard = NonfiniteGuard(GuardPolicy.SKIP_STEP)
    given = parameters(0.5, value, None)
    optimizer = torch.optim.AdamW(given, lr=0.1)
    assert guard.act(given) is True
    optimizer.step()
    assert all(parameter.tolist() == [1, 1] for parameter in given)
    assert not optimizer.state


def test_a_finite_step_is_taken():
    guard = NonfiniteGuard(GuardPolicy.SKIP_STEP)
    given = parameters(0.5, 3e38, None)
    assert guard.act(given) is False
    assert given[0].grad is not None
    assert guard.act(parameters(None)) is False


def test_sparse_gradients_are_checked():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1, 1])).sum().backward()
    guard = NonfiniteGuard(GuardPolicy.SKIP_STEP)
    assert guard.act(embedding.parameters()) is False
    embedding.weight.grad = embedding.weight.grad * float("inf")
    assert guard.act(embedding.parameters()) is True
