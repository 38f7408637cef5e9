"""Modules and optimizers: captured, checked, put back."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from stabilizer.agent.control import torch_state
from stabilizer.agent.control.host_copy import HostCopier
from stabilizer.agent.control.torch_state import (
    capture_module,
    capture_optimizers,
    capture_random_state,
    check_module,
    check_optimizers,
    finite_candidates,
    restore_module,
    restore_optimizers,
    restore_random_state,
)
from stabilizer.errors import CommandRejectedError, RestoreError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout())
        self.tied = nn.Linear(3, 4)
        self.tied.weight = self.body[0].weight
        self.frozen = nn.Linear(4, 1).requires_grad_(False)
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.word = "first"

    def forward(self, x):
        return self.frozen(self.body(x) + self.tied(x))

    def get_extra_state(self):
        return {"word": self.word}

    def set_extra_state(self, state):
        self.word = state["word"]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def freeze():
    return HostCopier().freeze


def train(net, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.ones(5, 3) * torch.rand(5, 1)).square().mean().backward()
        optimizer.step()
    net.hidden += 1
    return {name: value.clone() for name, value in net.state_dict().items() if name[0] != "_"}


def test_everything_of_a_module_goes_back_in_place(net, freeze):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    train(net, optimizer)
    frozen = freeze(capture_module(net))
    pointers = {name: p.data_ptr() for name, p in net.named_parameters()}
    before = copy.deepcopy(net)
    train(net, optimizer)
    net.word = "second"
    net.body[1].eval()
    net.frozen.requires_grad_(True)
    check_module(net, frozen)
    restore_module(net, frozen)
    assert {name: p.data_ptr() for name, p in net.named_parameters()} == pointers
    for name, value in [*before.named_parameters(), *before.named_buffers()]:
        assert torch.equal(value, dict(_tensors(net))[name]), name
    assert net.hidden.tolist() == [1, 1]
    assert net.word == "first"
    assert net.body[1].training
    assert not net.frozen.weight.requires_grad


def _tensors(net):
    yield from net.named_parameters()
    yield from net.named_buffers()


def test_gradients_that_were_not_there_are_taken_away(net, freeze):
    frozen = freeze(capture_module(net))
    net(torch.ones(5, 3)).mean().backward()
    with_gradients = freeze(capture_module(net))
    restore_module(net, frozen)
    assert all(p.grad is None for p in net.parameters())
    restore_module(net, with_gradients)  # there was one: zeros, so that the optimizer steps
    assert net.body[0].weight.grad.abs().sum() == 0
    assert net.frozen.weight.grad is None


def test_gradients_are_kept_where_they_matter(net, freeze):
    net(torch.ones(5, 3)).mean().backward()
    expected = net.body[0].weight.grad.clone()
    frozen = freeze(capture_module(net, with_gradients=True))
    net.zero_grad()
    restore_module(net, frozen)
    assert torch.equal(net.body[0].weight.grad, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: setattr(net, "more", nn.Linear(1, 1)), "parameters have changed"),
        (lambda net: net.register_buffer("more", torch.ones(1)), "buffers have changed"),
        (lambda net: setattr(net, "hidden", torch.zeros(3)), "hidden is"),
        (lambda net: net.double(), "float64"),
    ],
)
def test_a_model_that_has_changed_its_shape_is_refused(net, freeze, change, message):
    frozen = freeze(capture_module(net))
    change(net)
    with pytest.raises(CommandRejectedError, match=message) as caught:
        check_module(net, frozen)
    assert caught.value.reason == "unsupported"


def test_a_write_that_does_not_stick_is_noticed(net, freeze, monkeypatch):
    frozen = freeze(capture_module(net))
    monkeypatch.setattr(torch_state, "is_same_bits", lambda *_: False)
    with pytest.raises(RestoreError, match="does not hold"):
        restore_module(net, frozen)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "tensor rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1), foreach=False),
    "lbfgs": lambda p: torch.optim.LBFGS([x for x in p if x.requires_grad], max_iter=2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_restored_optimizer_continues_the_same(name, steps, net, freeze):
    optimizer = OPTIMIZERS[name](net.parameters())

    def step():
        def closure():
            optimizer.zero_grad()
            loss = net.tied(torch.ones(2, 3)).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        return net.tied.weight.detach().clone()

    for _ in range(steps):
        step()
    frozen, weights = freeze(capture_optimizers([optimizer])), freeze(capture_module(net))
    optimizer.param_groups[0]["extra"] = 1
    expected = [step() for _ in range(3)]
    optimizer.param_groups[0]["lr"] *= 0.5
    for _ in range(2):
        check_optimizers([optimizer], frozen)
        restore_optimizers([optimizer], frozen)
        restore_module(net, weights)
        assert "extra" not in optimizer.param_groups[0]
        assert all(
            torch.equal(a, b) for a, b in zip(expected, [step() for _ in range(3)], strict=True)
        )


def test_moments_keep_the_type_they_had(freeze):
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.Adam([parameter])
    optimizer.state[parameter] = {"step": torch.tensor(1.0), "exp_avg": torch.tensor([1 / 3] * 3)}
    frozen = freeze(capture_optimizers([optimizer]))
    optimizer.state[parameter] = {"exp_avg": torch.zeros(3), "more": 1}
    restore_optimizers([optimizer], frozen)
    state = optimizer.state[parameter]
    assert state["exp_avg"].dtype == torch.float32
    assert state["exp_avg"].tolist() == torch.tensor([1 / 3] * 3).tolist()
    assert set(state) == {"step", "exp_avg"}


def test_state_that_belongs_to_no_parameter_goes_back(freeze):
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.state["global"] = 3
    frozen = freeze(capture_optimizers([optimizer]))
    optimizer.state["global"] = 4
    optimizer.state["other"] = 5
    restore_optimizers([optimizer], frozen)
    assert dict(optimizer.state) == {"global": 3}


def test_an_optimizer_of_its_own_mind_is_asked(freeze):
    class Own(torch.optim.SGD):
        def load_state_dict(self, state_dict):
            self.loaded = state_dict
            super().load_state_dict(state_dict)

    parameter = nn.Parameter(torch.ones(3))
    optimizer = Own([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(3)
    optimizer.step()
    frozen = freeze(capture_optimizers([optimizer]))
    kept = frozen[0]["state"][0]["momentum_buffer"]
    optimizer.step()
    restore_optimizers([optimizer], frozen)
    assert optimizer.loaded["state"][0]["momentum_buffer"] is not kept.tensor
    optimizer.step()
    assert kept.tensor.tolist() == [1, 1, 1]


def test_an_optimizer_that_forgets_is_noticed(freeze, monkeypatch):
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(3)
    optimizer.step()
    frozen = freeze(capture_optimizers([optimizer]))
    monkeypatch.setattr(torch_state, "is_same_bits", lambda *_: False)
    with pytest.raises(RestoreError, match="momentum_buffer"):
        restore_optimizers([optimizer], frozen)


def test_other_groups_are_refused(freeze):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1)
    frozen = freeze(capture_optimizers([optimizer]))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(CommandRejectedError, match=r"\[\[1, 1\]\] .* had \[\[1\]\]"):
        check_optimizers([optimizer], frozen)


def test_what_must_be_finite(net):
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    optimizer.state["note"] = 3
    listed = list(finite_candidates(net, [optimizer], frozenset({"hidden"})))
    assert all(tensor is not net.hidden for tensor in listed)
    assert any(tensor is net.body[1].running_mean for tensor in listed)
    assert any(tensor is optimizer.state[net.body[0].weight]["exp_avg"] for tensor in listed)


def draw():
    return random.random(), float(np.random.rand()), torch.rand(3).tolist()  # noqa: NPY002


def test_every_generator_goes_back():
    state = capture_random_state([torch.device("cpu")])
    assert state.cuda == ()
    first = draw()
    draw()
    for _ in range(2):
        restore_random_state(state)
        assert draw() == first


def test_looking_moves_nothing():
    restore_random_state(capture_random_state())
    before = capture_random_state()
    assert before.is_same_host_state(capture_random_state())


def test_a_change_of_any_generator_is_detected():
    state = capture_random_state()
    for draw_one in (random.random, lambda: np.random.rand(), lambda: torch.rand(1)):  # noqa: NPY002, PLW0108
        restore_random_state(state)
        draw_one()
        assert not state.is_same_host_state(capture_random_state())


def test_a_half_used_gaussian_of_numpy_goes_back():
    np.random.seed(3)  # noqa: NPY002
    np.random.randn()  # noqa: NPY002  the second of the pair waits in the state
    state = capture_random_state()
    first = np.random.randn()  # noqa: NPY002
    assert not state.is_same_host_state(capture_random_state())
    restore_random_state(state)
    assert np.random.randn() == first  # noqa: NPY002


def test_other_bit_generators_are_compared_as_a_whole():
    state = capture_random_state()
    philox = np.random.Philox(1).state
    changed = type(state)(state.python, philox, state.torch_host)
    same = type(state)(state.python, np.random.Philox(1).state, state.torch_host)
    assert changed.is_same_host_state(same)
    assert not changed.is_same_host_state(state)
    assert state.num_bytes > 5000
