"""One rank of four over meshes of two dimensions; started by test_meshes."""

import json
import os
import sys
from pathlib import Path

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from tests.distributed import sharded_jobs as jobs
from tests.distributed.sharded_jobs import kit


class HybridNet(jobs.ShardedPlainNet):
    """HSDP: two replicas of two shards."""

    def shard(self, mesh):
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        super().shard({"data_parallel": mesh})


class TensorParallelNet(jobs.ShardedPlainNet):
    """FSDP2 over tensor parallelism, with layers split by columns, rows and the sequence."""

    def shard(self, mesh):
        plan = {
            "layers.0.fc1": ColwiseParallel(),
            "layers.0.fc2": RowwiseParallel(output_layouts=Shard(0)),
            "norm": SequenceParallel(sequence_dim=0),
            "head": ColwiseParallel(input_layouts=Shard(0), output_layouts=Replicate()),
        }
        parallelize_module(self.core, mesh["tensor_parallel"], plan)
        fully_shard(self.core, mesh=mesh["data_parallel"])


KINDS = {
    "hsdp": (HybridNet, 4, lambda: ModelParallelStrategy(4, 1)),
    "tensor": (TensorParallelNet, 2, lambda: ModelParallelStrategy(2, 2)),
}
PLANS = {
    "undisturbed": {},
    "rollback": {5: lambda job: kit.rollback(job, 2)},
}


def train(kind, plan, rank):
    net, parts, make_strategy = KINDS[kind]
    ran, norms = jobs.train_plain(
        net,
        part=rank * parts // 4,
        parts=parts,
        plan=PLANS[plan] if rank == 0 else {},
        accelerator="cpu",
        strategy=make_strategy(),
        devices=4,
    )
    return {
        "norms": norms,
        "history": ran.history,
        "results": [r.model_dump(mode="json") for r in ran.results],
        "weights": {name: jobs.local(value).tolist() for name, value in ran.weights.items()},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    local_rank = int(os.environ["LOCAL_RANK"])
    reports = {f"{kind}/{plan}": train(kind, plan, local_rank) for kind in KINDS for plan in PLANS}
    Path(sys.argv[1]).write_text(json.dumps(reports))
