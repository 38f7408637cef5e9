from __future__ import annotations

import random

import numpy as np
import torch

from stabilizer.agent.control.torch_state import capture_random_state, restore_random_state


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


def test_each_generator_is_told_apart():
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
