"""Logit drift, fp16 overflow and NaN in a gradient."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from stabilizer.errors import ConfigurationError
from trainer.faults import Fp16Overflow, LogitDrift, NanGradient


def hooks(module):
    return len(module.head._forward_hooks)


def test_the_loss_sees_logits_that_drift_from_the_step_on(kit):
    calm = kit.seen(module=kit.Foreign(rate=0.0))
    seen = kit.seen(LogitDrift(step=2, per_step=10, head="head"), module=kit.Foreign(rate=0.0))
    assert seen.losses[:2] == calm.losses[:2]
    roots = [math.sqrt(b) - math.sqrt(a) for a, b in zip(calm.losses, seen.losses, strict=True)]
    # The square of logsumexp: its root grows as the logits do, up to the rounding.
    assert roots[2:] == pytest.approx([10, 20, 30, 40], abs=0.2)


def test_drifted_logits_are_rounded_to_bf16(kit):
    fault = LogitDrift(step=1, per_step=1024, head="head")
    module = kit.Foreign()
    fault.strike(None, module)
    fault._offset = 1024.0
    logits = module(torch.randn(5, 4))
    assert logits.dtype == torch.float32
    assert torch.equal(logits % 4, torch.zeros_like(logits))
    fault.cease()


@pytest.mark.parametrize("head", ["head", "body"])
def test_it_ends_after_its_steps_and_leaves_no_hook(kit, head):
    module = kit.Foreign(rate=0.0)
    calm = kit.seen(module=kit.Foreign(rate=0.0))
    seen = kit.seen(LogitDrift(step=2, steps=2, head=head), module=module)
    assert seen.losses[4:] == calm.losses[4:]
    assert seen.losses[2:4] != calm.losses[2:4]
    assert hooks(module) == 0


@pytest.mark.parametrize(
    "make", [lambda: LogitDrift(step=3, head="head"), lambda: Fp16Overflow(step=3, module="head")]
)
def test_a_rollback_ends_it_and_it_does_not_begin_again(kit, make):
    module = kit.Foreign(rate=0.0)
    rewind = kit.RewindOnce(2, 4)
    seen, calm = kit.seen(rewind, make(), module=module), kit.seen(module=kit.Foreign(rate=0.0))
    assert seen.losses[3] != calm.losses[3]
    assert all(math.isfinite(loss) and loss < 10 for loss in seen.losses[4:])
    assert hooks(module) == 0


def test_it_ends_with_the_job(kit):
    module = kit.Foreign()
    kit.train(LogitDrift(step=2, head="head"), module=module)
    assert hooks(module) == 0


def test_an_overflow_without_a_scaler_spoils_the_weights(kit):
    seen = kit.seen(Fp16Overflow(step=2, module="head", factor=1e9))
    assert [math.isfinite(loss) for loss in seen.losses] == [True, True, *[False] * 4]


def test_an_overflow_with_a_scaler_costs_a_step_and_half_of_the_scale(kit):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    fault = Fp16Overflow(step=2, module="head", factor=1e9)
    seen = kit.seen(fault, plugins=[precision])
    assert torch.equal(seen.weights[3]["head.weight"], seen.weights[2]["head.weight"])
    assert not torch.equal(seen.weights[4]["head.weight"], seen.weights[3]["head.weight"])
    assert scaler.get_scale() == 512.0


@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_gradient_of_one_step_has_one_nan(kit, accumulate):
    seen = kit.seen(NanGradient(step=2, module="head"), accumulate=accumulate, steps=3)
    counts = [
        {name: int(value.isnan().sum()) for name, value in gradients.items()}
        for gradients in seen.gradients
    ]
    calm = {"body.weight": 0, "body.bias": 0, "head.weight": 0}
    assert counts == [calm, calm, calm | {"head.weight": 1}]


def test_a_nan_is_not_written_again_when_the_step_comes_again(kit):
    fault, rewind = NanGradient(step=2, module="head"), kit.RewindOnce(1, 3)
    seen = kit.seen(fault, rewind, steps=4)
    assert sum(int(step["head.weight"].isnan().any()) for step in seen.gradients) == 1


def test_a_frozen_module_cannot_have_it(kit):
    module = kit.Foreign()
    module.head.requires_grad_(requires_grad=False)
    with pytest.raises(ConfigurationError, match="a module that is trained"):
        kit.train(NanGradient(step=1, module="head"), module=module)


def test_a_name_that_two_modules_have_is_refused_with_both(kit):
    module = kit.Foreign()
    module.other = torch.nn.ModuleDict({"head": torch.nn.Linear(1, 1)})
    module.another = torch.nn.ModuleDict({"head": torch.nn.Linear(1, 1)})
    del module.head
    module.head = torch.nn.Linear(4, 3)
    NanGradient(step=1, module="other.head").strike(None, module)
    module.model = torch.nn.ModuleDict({"deep": torch.nn.Linear(1, 1)})
    module.last = torch.nn.ModuleDict({"deep": torch.nn.Linear(1, 1)})
    with pytest.raises(ConfigurationError, match=r"such as model\.deep, last\.deep"):
        NanGradient(step=1, module="deep").strike(None, module)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LogitDrift(step=0),
        lambda: LogitDrift(step=1, steps=0),
        lambda: Fp16Overflow(step=1, module="x", steps=-1),
        lambda: NanGradient(step=-3, module="x"),
    ],
)
def test_impossible_steps_are_refused(make):
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        make()
