"""FSDP2 with checkpoints in which every rank writes its own shards, as safetensors."""
# ruff: noqa: SLF001  Lightning's wrapper hides the optimizer that torch's functions ask for

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer
from typing_extensions import override

from trainer.checkpoints.folders import (
    CheckpointError,
    begin_folder,
    check_files,
    commit_folder,
    drop_part,
    part_of,
    read_manifest,
)
from trainer.checkpoints.storage import (
    Tree,
    fill_tensors,
    join_tree,
    read_state,
    read_tensors,
    split_tree,
    write_state,
    write_tensors,
)

_STATE = "state_dict"
_OPTIMIZERS = "optimizer_states"


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all ranks, with checkpoints that hold no pickle.

    Every rank writes its shards into one folder, which all ranks must see. A checkpoint can be
    resumed by another number of ranks.
    """

    def __init__(self, processes: int) -> None:
        """Shard over all processes.

        Args:
            processes: Of the whole job.
        """
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1)

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        """Write a folder, whole or not at all; all ranks.

        Raises:
            CheckpointError: A rank could not write, or a value of the state is not supported.
        """
        folder = Path(self.broadcast(str(filepath)))
        skeleton, tensors = split_tree(checkpoint)
        try:
            self._write(folder, skeleton, tensors)
        except CheckpointError:
            if self.is_global_zero:  # all ranks have failed: none is still writing
                drop_part(folder)
            raise

    def _write(self, folder: Path, skeleton: Tree, tensors: dict[str, Tensor]) -> None:
        error: Exception | None = None
        if self.is_global_zero:
            try:
                begin_folder(folder)
            except OSError as failure:
                error = failure
        self._agree(error, folder)
        write_tensors(part_of(folder), tensors, alone=False)
        if self.is_global_zero:
            try:
                write_state(part_of(folder), skeleton)
                commit_folder(folder, {"sharded": True})
            except OSError as failure:
                error = failure
        self._agree(error, folder)

    @override
    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read every rank's shards into model and optimizers; return the rest of the state.

        Raises:
            CheckpointError: It is no sharded checkpoint, damaged, or of another model.
        """
        folder = Path(self.broadcast(str(checkpoint_path)))
        self._check(folder)
        skeleton = read_state(folder)
        live = {
            _STATE: get_model_state_dict(self._sharded),
            _OPTIMIZERS: [
                get_optimizer_state_dict(self._sharded, optimizer) for optimizer in self._plain()
            ],
        }
        _, tensors = split_tree(live)
        fill_tensors(folder, tensors)
        tensors |= read_tensors(folder, besides=set(tensors))
        tree = join_tree(skeleton, tensors)
        set_model_state_dict(self._sharded, tree.pop(_STATE))
        for optimizer, state in zip(self._plain(), tree.pop(_OPTIMIZERS), strict=True):
            set_optimizer_state_dict(self._sharded, optimizer, optim_state_dict=state)
        return {_STATE: {}, **tree}

    def _check(self, folder: Path) -> None:
        """Verify a checkpoint, each rank a part of its files, and agree on the result."""
        error: Exception | None = None
        try:
            _require_sharded(folder)
            check_files(folder, part=self.global_rank, parts=self.world_size)
        except CheckpointError as failure:
            error = failure
        self._agree(error, folder)

    def _agree(self, error: Exception | None, folder: Path) -> None:
        """Raise on all ranks if one has failed, so that no rank waits for it."""
        verdict = torch.tensor(float(error is None), device=self.root_device)
        dist.all_reduce(verdict, dist.ReduceOp.MIN)
        if error is not None:
            raise CheckpointError(str(error)) from error
        if not verdict.item():
            raise CheckpointError(f"{folder}: another rank has failed; see its log")

    @property
    def _sharded(self) -> torch.nn.Module:
        if self.model is None:
            raise CheckpointError("there is no model yet")
        return self.model

    def _plain(self) -> list[Optimizer]:
        return [
            optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
            for optimizer in self.optimizers
        ]


def _require_sharded(folder: Path) -> None:
    if not read_manifest(folder).get("sharded"):
        raise CheckpointError(
            f"{folder} was written by one process; allowed with training.strategy fsdp2: a "
            "checkpoint that fsdp2 has written"
        )
