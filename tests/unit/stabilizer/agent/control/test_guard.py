from __future__ import annotations

import pytest
import torch
from torch import nn

from stabilizer.agent.control.optimizer_step import GuardPolicy, NonfiniteGuard


def parameters(*values):
    made = []
    for value in values:
        parameter = nn.Parameter(torch.ones(2))
        parameter.grad = None if value is None else torch.tensor([1.0, value])
        made.append(parameter)
    return made


def test_as_shipped_it_leaves_the_step_to_the_job():
    given = parameters(float("nan"))
    guard = NonfiniteGuard()
    assert guard.act(given) is False
    assert given[0].grad is not None
    assert guard.skipped_steps == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_moves_nothing(value):
    guard = NonfiniteGuard(GuardPolicy.SKIP_STEP)
    given = parameters(0.5, value, None)
    optimizer = torch.optim.AdamW(given, lr=0.1)
    assert guard.act(given) is True
    assert guard.skipped_steps == 1
    optimizer.step()
    assert all(parameter.tolist() == [1, 1] for parameter in given)
    assert not optimizer.state


def test_a_finite_step_is_taken():
    guard = NonfiniteGuard(GuardPolicy.SKIP_STEP)
    given = parameters(0.5, 3e38, None)
    assert guard.act(given) is False
    assert given[0].grad is not None
    assert guard.act(parameters(None)) is False


def test_sparse_gradients_are_looked_at():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1, 1])).sum().backward()
    guard = NonfiniteGuard(GuardPolicy.SKIP_STEP)
    assert guard.act(embedding.parameters()) is False
    embedding.weight.grad = embedding.weight.grad * float("inf")
    assert guard.act(embedding.parameters()) is True
