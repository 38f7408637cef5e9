from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple

import pytest
import torch

from stabilizer.agent.control.host_copy import (
    Held,
    HostCopier,
    Steady,
    is_finite,
    is_same_bits,
    iterate_held,
    thaw,
)

Pair = namedtuple("Pair", ["left", "right"])


@pytest.fixture
def copier():
    return HostCopier()


def test_a_thawed_tree_is_equal_and_separate(copier):
    tensor = torch.arange(6.0).reshape(2, 3)
    tree = {
        "dict": OrderedDict(a=tensor),
        "default": defaultdict(list, b=[tensor + 1]),
        "pair": Pair(tensor.t(), (1, "x")),
        "plain": {"numbers": [1, 2], "none": None},
        "other": UserDict(c=3),
    }
    frozen = copier.freeze(tree)
    tensor.zero_()
    tree["plain"]["numbers"].append(3)
    for _ in range(2):
        live = thaw(frozen)
        assert live["dict"]["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert isinstance(live["dict"], OrderedDict)
        assert live["default"]["b"][0].tolist() == [[1, 2, 3], [4, 5, 6]]
        assert live["default"]["new"] == []
        assert isinstance(live["pair"], Pair)
        assert live["pair"].left.tolist() == [[0, 3], [1, 4], [2, 5]]
        assert live["plain"] == {"numbers": [1, 2], "none": None}
        assert dict(live["other"]) == {"c": 3}
        live["dict"]["a"].fill_(9)
        live["plain"]["numbers"].clear()


def test_shared_memory_is_copied_once_and_stays_shared(copier):
    weight = torch.ones(4)
    frozen = copier.freeze({"a": weight, "b": weight.detach(), "part": weight[:2]})
    assert frozen["a"] is frozen["b"]
    assert frozen["part"] is not frozen["a"]
    live = thaw(frozen)
    assert live["a"] is live["b"]
    assert copier.copied_bytes == 16 + 8


def test_the_memory_of_a_dropped_tree_is_used_again(copier):
    first = copier.freeze({"a": torch.ones(3), "b": torch.zeros(2)})
    pointers = {held.tensor.data_ptr() for held in iterate_held(first)}
    copier.recycle(first)
    second = copier.freeze({"a": torch.full((3,), 2.0), "b": torch.ones(2)})
    assert {held.tensor.data_ptr() for held in iterate_held(second)} == pointers
    assert thaw(second)["a"].tolist() == [2, 2, 2]
    third = copier.freeze({"a": torch.full((3,), 3.0)})
    assert third["a"].tensor.data_ptr() not in pointers
    copier.recycle(third)
    copier.forget()
    assert copier.freeze({"a": torch.ones(3)})["a"].tensor.data_ptr() is not None


def test_what_stays_the_same_is_held_once(copier):
    frozen_weight = torch.ones(5)
    first = copier.freeze({"w": Steady("w", frozen_weight)})
    second = copier.freeze({"w": Steady("w", frozen_weight)})
    assert second["w"] is first["w"]
    assert copier.copied_bytes == 0
    frozen_weight.data.add_(1)  # leaves no trace but the content
    third = copier.freeze({"w": Steady("w", frozen_weight)})
    assert third["w"] is not first["w"]
    assert first["w"].tensor.tolist() == [1] * 5
    copier.recycle(first)  # shared memory is never written again
    copier.freeze({"x": torch.zeros(5)})
    assert first["w"].tensor.tolist() == [1] * 5


def test_empty_sparse_and_special_tensors(copier):
    sparse = torch.sparse_coo_tensor([[0, 2]], [1.0, 2.0], (3,), check_invariants=True)
    tree = {
        "empty": torch.empty(0),
        "scalar": torch.tensor(float("nan")),
        "sparse": sparse,
        "half": torch.ones(2, dtype=torch.bfloat16),
        "bool": torch.tensor([True, False]),
    }
    live = thaw(copier.freeze(tree), torch.device("cpu"))
    assert live["empty"].shape == (0,)
    assert live["scalar"].isnan()
    assert live["sparse"].to_dense().tolist() == [1, 0, 2]
    assert is_same_bits(live["sparse"], sparse)
    assert not is_same_bits(live["sparse"] * 2, sparse)
    assert live["half"].dtype == torch.bfloat16
    assert live["bool"].tolist() == [True, False]


def test_what_cannot_be_copied_is_an_error(copier):
    with pytest.raises(TypeError):
        copier.freeze({"generator": (i for i in range(3))})


def test_held_tensors_are_listed_once(copier):
    tensor = torch.ones(1)
    frozen = copier.freeze([tensor, (tensor, {"x": tensor}), 3])
    assert [type(held) for held in iterate_held(frozen)] == [Held]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), True),
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        (torch.tensor(1.0), torch.tensor(1.0), True),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64), False),
        (torch.ones(2), torch.ones(1, 2), False),
        (torch.ones(2, 3).t(), torch.ones(3, 2), True),
    ],
)
def test_bits_are_compared(one, other, same):
    assert is_same_bits(one, other) is same


def test_finite_looks_at_floating_values_only():
    assert is_finite([])
    assert is_finite([torch.ones(2), torch.tensor([2**40]), torch.ones(1, dtype=torch.complex64)])
    assert not is_finite([torch.ones(2), torch.tensor([1.0, float("inf")])])
    assert not is_finite([torch.tensor(float("nan"), dtype=torch.bfloat16)])
    # A norm would overflow here; the values are finite.
    assert is_finite([torch.full((8,), 3e38)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_non_finite_value_is_found_anywhere(bad, dtype):
    for place in range(67):  # vector width and remainder
        values = torch.linspace(-3, 3, 67).to(dtype)
        assert is_finite([values])
        values[place] = bad
        assert not is_finite([values])


def test_narrow_and_empty_tensors_are_looked_at():
    assert is_finite([torch.empty(0), torch.ones(3).to(torch.float8_e5m2)])
    assert not is_finite([torch.tensor([float("inf"), 1.0]).to(torch.float8_e5m2)])
    assert not is_finite([torch.tensor([complex(1, float("nan"))])])
