"""State of a job as a tree of values and tensors, and its storage in one folder."""

from __future__ import annotations

import base64
import json
import logging
import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from lightning.fabric.plugins import CheckpointIO
from pydantic import JsonValue
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from typing_extensions import override

from trainer.checkpoints.folders import (
    CheckpointError,
    begin_folder,
    check_files,
    commit_folder,
    drop_part,
    read_manifest,
    remove_folder,
)

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
    """Rebuild a tree.

    Raises:
        CheckpointError: The skeleton is invalid, or a tensor is missing.
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


STATE_FILE: Final = "state.json"
TENSORS_FOLDER: Final = "tensors"


class SafeCheckpointIO(CheckpointIO):
    """Writes and reads the checkpoints of one process; `Trainer(plugins=[SafeCheckpointIO()])`."""

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a folder, whole or not at all.

        Raises:
            CheckpointError: The state has a value of a kind that is not kept.
            OSError: It cannot be written.
        """
        folder = Path(path)
        skeleton, tensors = split_tree(checkpoint)
        try:
            part = begin_folder(folder)
            write_state(part, skeleton)
            write_tensors(part, tensors, alone=True)
            commit_folder(folder, {"sharded": False})
        except (CheckpointError, OSError):
            drop_part(folder)
            raise

    @override
    def load_checkpoint(
        self,
        path: Any,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a folder; a sharded one is put together.

        Raises:
            CheckpointError: It is no checkpoint, or damaged.
        """
        folder = Path(path)
        read_manifest(folder)
        check_files(folder)
        tree = join_tree(read_state(folder), read_tensors(folder))
        if not isinstance(tree, dict):
            raise CheckpointError(f"{folder}: {STATE_FILE} does not hold the state of a job")
        return tree

    @override
    def remove_checkpoint(self, path: Any) -> None:
        """Remove a folder."""
        if Path(path).exists():
            remove_folder(Path(path))


def write_state(part: Path, skeleton: Tree) -> None:
    """Write the skeleton into an unfinished folder."""
    (part / STATE_FILE).write_text(json.dumps(skeleton), encoding="utf-8")


def read_state(folder: Path) -> Any:  # noqa: ANN401  JSON
    """Read the skeleton.

    Raises:
        CheckpointError: It is missing or not JSON.
    """
    try:
        return json.loads((folder / STATE_FILE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}: {STATE_FILE} cannot be read: {error}") from error


def write_tensors(part: Path, tensors: dict[str, Tensor], *, alone: bool) -> None:
    """Write tensors into an unfinished folder.

    Args:
        part: The folder.
        tensors: By name; sharded ones are written by all ranks, each its own shard.
        alone: Only this process writes.

    Raises:
        CheckpointError: A rank could not write; on all ranks.
    """
    target = part / TENSORS_FOLDER
    target.mkdir(exist_ok=True)
    writer = HuggingFaceStorageWriter(str(target), save_distributed=True)
    with _checkpoint_errors(f"{part}: tensors cannot be written"):
        save(_unshared(tensors), storage_writer=writer, no_dist=alone)


def read_tensors(folder: Path, *, besides: Container[str] = ()) -> dict[str, Tensor]:
    """Read tensors, whole, to the host.

    Args:
        folder: The checkpoint.
        besides: Names to leave out.

    Raises:
        CheckpointError: A file is not in safetensors format.
    """
    source = str(folder / TENSORS_FOLDER)
    with _checkpoint_errors(f"{folder}: tensors cannot be read"):
        known = HuggingFaceStorageReader(source).read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(about.size, dtype=about.properties.dtype)
            for name, about in known.items()
            if name not in besides and isinstance(about, TensorStorageMetadata)
        }
        load(tensors, storage_reader=HuggingFaceStorageReader(source), no_dist=True)
    return tensors


def fill_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Read tensors in place, sharded ones on every rank its own shard.

    The checkpoint may have been written by another number of ranks.

    Raises:
        CheckpointError: A tensor is missing or has another shape; on all ranks.
    """
    reader = HuggingFaceStorageReader(str(folder / TENSORS_FOLDER))
    with _checkpoint_errors(f"{folder}: tensors cannot be read"):
        load(tensors, storage_reader=reader)


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory (tied weights), as safetensors requires."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        memory = local.untyped_storage().data_ptr()
        is_shared = memory in seen and local.numel() > 0
        seen.add(memory)
        result[name] = tensor.clone() if is_shared else tensor.contiguous()
    return result


@contextmanager
def _checkpoint_errors(what: str) -> Iterator[None]:
    """Convert errors of torch.distributed.checkpoint into ours, and hide its warnings."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Writing by a single process is intended.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:
        reasons = "; ".join(str(failure[0]) for failure in error.failures.values())
        raise CheckpointError(f"{what}: {reasons[:1000]}") from error
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{what}: {error}") from error
    finally:
        logger.setLevel(level)
