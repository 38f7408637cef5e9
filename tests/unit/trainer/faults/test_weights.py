"""Scaled and flipped weights."""

from __future__ import annotations

import pytest
import torch

from stabilizer.errors import ConfigurationError
from trainer.faults import FlippedWeights, ScaledWeights


@pytest.fixture
def twins(kit):
    """Return a function that gives the weights of both twins at the step of the fault."""

    def run(fault, at=2, **options):
        calm, struck = kit.seen(steps=4), kit.seen(fault, steps=4, **options)
        for before in range(at):
            assert all(
                torch.equal(calm.weights[before][name], value)
                for name, value in struck.weights[before].items()
            )
        return calm.weights[at], struck.weights[at]

    return run


def test_the_weights_of_the_named_module_alone_are_scaled(twins):
    calm, struck = twins(ScaledWeights(step=2, module="head", factor=30))
    assert torch.equal(struck["head.weight"], calm["head.weight"] * 30)
    assert torch.equal(struck["body.weight"], calm["body.weight"])


def test_a_rollback_undoes_it_and_it_does_not_happen_again(kit):
    calm = kit.seen(steps=4)
    seen = kit.seen(ScaledWeights(step=2, module="body"), kit.RewindOnce(1, 3), steps=4)
    assert not torch.equal(seen.weights[2]["body.weight"], calm.weights[2]["body.weight"])
    # Two steps behind the one that was gone back to; the data has gone on.
    assert seen.weights[5]["body.weight"].norm() < 2 * calm.weights[2]["body.weight"].norm()


@pytest.mark.parametrize(("part", "count"), [(1.0, 12), (0.5, 6), (1e-9, 1)])
def test_so_many_weights_change_their_sign(twins, part, count):
    calm, struck = twins(FlippedWeights(step=2, module="head", part=part))
    flipped = struck["head.weight"] == -calm["head.weight"]
    assert int(flipped.sum()) == count
    assert torch.equal(struck["head.weight"].abs(), calm["head.weight"].abs())
    assert torch.equal(struck["body.weight"], calm["body.weight"])


def test_the_highest_bit_of_the_exponent_makes_small_weights_huge():
    layer = torch.nn.Linear(4, 4)  # its weights are below 1/2
    before = layer.weight.detach().clone()
    FlippedWeights(step=1, module="", part=1e-9, bit=1).strike(None, layer)
    changed = torch.cat([(layer.weight != before).flatten(), layer.bias.abs() > 1])
    assert int(changed.sum()) == 2  # of each parameter at least one
    assert all(float(value.detach().abs().max()) > 1e30 for value in layer.parameters())


def test_bits_of_half_precision_weights_flip_too():
    layer = torch.nn.Linear(4, 4).to(torch.bfloat16)
    before = layer.weight.detach().clone()
    fault = FlippedWeights(step=1, module="", part=1.0)
    fault.strike(None, layer)
    assert torch.equal(layer.weight, -before)


def test_the_seed_chooses_the_weights(twins):
    def flipped(seed):
        calm, struck = twins(FlippedWeights(step=2, module="head", seed=seed))
        return struck["head.weight"] != calm["head.weight"]

    assert torch.equal(flipped(1), flipped(1))
    assert not torch.equal(flipped(1), flipped(2))


@pytest.mark.parametrize("name", ["none", "ead"])
def test_a_module_that_does_not_exist_is_reported_with_some_that_do(kit, name):
    with pytest.raises(ConfigurationError, match=r"scaled_weights\.module.*such as body, head"):
        kit.train(ScaledWeights(step=1, module=name))


def test_a_module_without_weights_is_refused(kit):
    module = kit.Foreign()
    module.nothing = torch.nn.Identity()
    with pytest.raises(ConfigurationError, match="a module that has weights"):
        kit.train(ScaledWeights(step=1, module="nothing"), module=module)


@pytest.mark.parametrize("options", [{"part": 0}, {"part": 1.1}, {"bit": 16}, {"bit": -1}])
def test_impossible_values_are_refused(options):
    with pytest.raises(ValueError, match="FlippedWeights"):
        FlippedWeights(step=1, module="head", **options)
