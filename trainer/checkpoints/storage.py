"""Checkpoints as safetensors and JSON: `SafeCheckpointIO`, a plugin for any Lightning trainer.

A checkpoint is a folder: `state.json` (the skeleton of the state), `tensors/*.safetensors` (written
by torch.distributed.checkpoint, one file per rank that holds parts) and `manifest.json` (sizes and
checksums). No pickle is written or read, so a checkpoint from a stranger can be wrong, but cannot
run code.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from lightning.fabric.plugins import CheckpointIO
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

from trainer.checkpoints.errors import CheckpointError
from trainer.checkpoints.folders import (
    begin_folder,
    check_files,
    commit_folder,
    drop_part,
    read_manifest,
    remove_folder,
)
from trainer.checkpoints.tree import Tree, join_tree, split_tree

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
            raise CheckpointError(f"{folder}: {STATE_FILE} holds no state of a job")
        return tree

    @override
    def remove_checkpoint(self, path: Any) -> None:
        """Remove a folder."""
        if Path(path).exists():
            remove_folder(Path(path))


def write_state(part: Path, skeleton: Tree) -> None:
    """Write the skeleton into a folder that is being made."""
    (part / STATE_FILE).write_text(json.dumps(skeleton), encoding="utf-8")


def read_state(folder: Path) -> Any:  # noqa: ANN401  JSON
    """Read the skeleton.

    Raises:
        CheckpointError: It is missing, or no JSON.
    """
    try:
        return json.loads((folder / STATE_FILE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}: {STATE_FILE} cannot be read: {error}") from error


def write_tensors(part: Path, tensors: dict[str, Tensor], *, alone: bool) -> None:
    """Write tensors into a folder that is being made.

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
    with _told_as_ours(f"{part}: tensors cannot be written"):
        save(_unshared(tensors), storage_writer=writer, no_dist=alone)


def read_tensors(folder: Path, *, besides: Container[str] = ()) -> dict[str, Tensor]:
    """Read tensors, whole, to the host.

    Args:
        folder: The checkpoint.
        besides: Names that are left out.

    Raises:
        CheckpointError: A file is none of safetensors.
    """
    source = str(folder / TENSORS_FOLDER)
    with _told_as_ours(f"{folder}: tensors cannot be read"):
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
    with _told_as_ours(f"{folder}: tensors cannot be read"):
        load(tensors, storage_reader=reader)


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors that share memory (tied weights) some of their own: safetensors asks for it."""
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
def _told_as_ours(what: str) -> Iterator[None]:
    """Turn errors of torch.distributed.checkpoint into ours, and its remarks into silence."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # That one process writes is meant.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:
        reasons = "; ".join(str(failure[0]) for failure in error.failures.values())
        raise CheckpointError(f"{what}: {reasons[:1000]}") from error
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{what}: {error}") from error
    finally:
        logger.setLevel(level)
