from __future__ import annotations

import json
import math
from collections import OrderedDict
from enum import IntEnum, StrEnum

import numpy as np
import pytest
import torch

from trainer.checkpoints.folders import CheckpointError
from trainer.checkpoints.storage import join_tree, split_tree


class Colour(StrEnum):
    RED = "red"


class Size(IntEnum):
    BIG = 3


def there_and_back(tree):
    skeleton, tensors = split_tree(tree)
    return join_tree(json.loads(json.dumps(skeleton)), tensors)


@pytest.mark.parametrize(
    "tree",
    [
        {"a": [1, 2.5, "x", None, True], "b": {"c": ()}},
        {1: "one", "1": "another one"},
        {("a", 2): [(), ((1, 2), [3])]},
        {"$tensor": "not one", "$dict": 3},
        {"big": 2**70, "tiny": 5e-324, "third": 1 / 3},
        b"\x00\xff",
        [],
        None,
    ],
)
def test_plain_values_come_back_as_they_were(tree):
    assert there_and_back(tree) == tree
    assert repr(there_and_back(tree)) == repr(tree)


def test_numbers_that_are_not_finite_come_back():
    back = there_and_back([math.inf, -math.inf, math.nan])
    assert back[:2] == [math.inf, -math.inf]
    assert math.isnan(back[2])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4),
        torch.randn(2, 2).to(torch.bfloat16),
        torch.tensor(7),
        torch.tensor([True, False]),
        torch.zeros(0, 3),
        torch.get_rng_state(),
    ],
    ids=["float", "bf16", "scalar", "bool", "empty", "bytes"],
)
def test_tensors_stand_beside_the_skeleton_by_their_place(tensor):
    skeleton, tensors = split_tree({"state": {3: [tensor]}})
    assert list(tensors) == ["state/3/0"]
    assert tensors["state/3/0"] is not None
    assert torch.equal(join_tree(skeleton, tensors)["state"][3][0], tensor)
    json.dumps(skeleton)


@pytest.mark.parametrize(
    "array",
    [np.arange(6).reshape(2, 3)[:, ::-1], np.float32(1.5) * np.ones(3), np.array([], np.uint32)],
    ids=["strided", "float32", "empty"],
)
def test_arrays_come_back_with_type_and_shape(array):
    back = there_and_back({"x": array})["x"]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert np.array_equal(back, array)


def test_kinds_of_numbers_texts_and_dicts_become_plain_ones():
    tree = {"a": Colour.RED, "b": Size.BIG, "c": np.float64(0.1), "d": OrderedDict(x=1)}
    back = there_and_back(tree)
    assert back == {"a": "red", "b": 3, "c": 0.1, "d": {"x": 1}}
    assert {type(value) for value in back.values()} == {str, int, float, dict}


@pytest.mark.parametrize(
    "value", [{1, 2}, object(), lambda: 0, 1j], ids=["set", "object", "function", "complex"]
)
def test_what_cannot_be_kept_is_refused_with_its_place(value):
    with pytest.raises(CheckpointError, match=r"callbacks/Mine/0: a \w+ cannot be kept"):
        split_tree({"callbacks": {"Mine": [value]}})


def test_a_state_that_refers_to_itself_is_refused():
    tree: dict = {}
    tree["self"] = tree
    with pytest.raises(CheckpointError, match="refers to itself"):
        split_tree(tree)


@pytest.mark.parametrize(
    "skeleton",
    [{"$tensor": "gone"}, {"$dict": [[1]]}, {"$array": ["x"]}, {"$bytes": 3}, {"$tuple": 3}],
)
def test_a_damaged_skeleton_is_reported_as_one(skeleton):
    with pytest.raises(CheckpointError, match="damaged"):
        join_tree([skeleton], {})
