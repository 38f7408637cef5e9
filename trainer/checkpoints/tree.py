"""Training state as JSON beside tensors: nothing that is read back can run code.

A tree of containers, plain values and tensors becomes a skeleton that JSON can hold, in which a
tensor is a name, and the tensors by name. What neither can hold is refused when it is written, not
when it is needed.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from trainer.checkpoints.errors import CheckpointError

Tree: TypeAlias = Any
"""dict, list and tuple of plain values, tensors and numpy arrays."""

_TENSOR: Final = "$tensor"
_MARKS: Final = (_TENSOR, "$dict", "$tuple", "$array", "$bytes")
_MAX_DEPTH: Final = 100


def split_tree(tree: Tree) -> tuple[JsonValue, dict[str, Tensor]]:
    """Return skeleton and tensors, each named by its place (`optimizer_states/0/state/3/exp_avg`).

    Raises:
        CheckpointError: A value of a kind that is not kept; the message names its place.
    """
    tensors: dict[str, Tensor] = {}
    return _split(tree, "", tensors), tensors


def join_tree(skeleton: JsonValue, tensors: Mapping[str, Tensor]) -> Tree:
    """Put a tree together again.

    Raises:
        CheckpointError: The skeleton is none, or a tensor is missing.
    """
    return _join(skeleton, tensors, 0)


def _split(value: Tree, place: str, tensors: dict[str, Tensor]) -> JsonValue:
    if isinstance(value, Tensor):
        tensors[place] = value.detach()
        return {_TENSOR: place}
    if value is None or isinstance(value, bool | int | float | str):
        return _plain(value)
    if isinstance(value, np.ndarray):
        tensors[place] = torch.from_numpy(np.ascontiguousarray(value).view(np.uint8).reshape(-1))
        return {"$array": [place, str(value.dtype), list(value.shape)]}
    if isinstance(value, Mapping):
        return _split_mapping(value, place, tensors)
    if isinstance(value, tuple | list):
        if place.count("/") > _MAX_DEPTH:
            raise CheckpointError(f"{place[:200]}: this state refers to itself")
        items = [_split(item, _below(place, i), tensors) for i, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    raise CheckpointError(
        f"{place}: a {type(value).__name__} cannot be kept in a checkpoint; allowed: "
        "numbers, texts, dicts, lists, tuples, tensors and numpy arrays"
    )


def _below(place: str, key: object) -> str:
    return f"{place}/{key}" if place else str(key)


def _plain(value: Any) -> JsonValue:  # noqa: ANN401  a number, a text, or a kind of one
    for kind in (bool, int, float, str):
        if isinstance(value, kind):  # an enum or numpy number of this kind becomes one
            return kind(value)
    return None


def _split_mapping(value: Mapping[Any, Tree], place: str, tensors: dict[str, Tensor]) -> JsonValue:
    if place.count("/") > _MAX_DEPTH:
        raise CheckpointError(f"{place[:200]}: this state refers to itself")
    items = {key: _split(item, _below(place, key), tensors) for key, item in value.items()}
    if all(isinstance(key, str) and key not in _MARKS for key in items):
        return {str(key): item for key, item in items.items()}
    return {"$dict": [[_split(key, place, {}), item] for key, item in items.items()]}


def _join(value: JsonValue, tensors: Mapping[str, Tensor], depth: int) -> Tree:
    if isinstance(value, list):
        return [_join(item, tensors, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        mark, content = next(iter(value.items()))
        if mark in _JOINERS:
            try:
                return _JOINERS[mark](content, tensors, depth)
            except (KeyError, TypeError, ValueError) as error:
                raise CheckpointError(f"the state is damaged at {mark}: {error!r}") from error
    return {key: _join(item, tensors, depth + 1) for key, item in value.items()}


def _join_array(content: Any, tensors: Mapping[str, Tensor], depth: int) -> Tree:  # noqa: ANN401  JSON
    del depth
    name, dtype, shape = content
    return tensors[name].numpy().view(np.dtype(dtype)).reshape(shape)


def _join_pairs(content: Any, tensors: Mapping[str, Tensor], depth: int) -> Tree:  # noqa: ANN401  JSON
    return {
        _join(key, tensors, depth + 1): _join(item, tensors, depth + 1) for key, item in content
    }


_JOINERS: Final[dict[str, Callable[[Any, Mapping[str, Tensor], int], Tree]]] = {
    _TENSOR: lambda content, tensors, _: tensors[content],
    "$dict": _join_pairs,
    "$tuple": lambda content, tensors, depth: tuple(_join(content, tensors, depth)),
    "$array": _join_array,
    "$bytes": lambda content, *_: base64.b64decode(content),
}
