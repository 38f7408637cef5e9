"""One rank of a two-rank job; started by test_two_ranks with LOCAL_RANK set."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from stabilizer.agent import watch
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.protocol.commands import (
    CheckpointNowParameters,
    PauseParameters,
    ReduceLrParameters,
    ResumeParameters,
    StopParameters,
)
from tests.distributed import sharded_jobs as jobs
from tests.distributed.sharded_jobs import kit

PLANS = {
    "undisturbed": {},
    "rollback": {7: lambda job: kit.rollback(job, 4)},
    "cut": {5: lambda job: kit.command(job, ReduceLrParameters(factor=0.5))},
    "stop": {
        5: lambda job: kit.command(job, CheckpointNowParameters()),
        6: lambda job: kit.command(job, StopParameters()),
    },
    "pause": {
        6: lambda job: [
            kit.command(job, PauseParameters()),
            kit.rollback(job, 4),
            kit.command(job, ResumeParameters(), attempt=2),
        ]
    },
}
REFUSED = {
    "ddp": {7: lambda job: kit.rollback(job, 4, snapshot_id="step4-99")},
    "fsdp2": {
        6: lambda job: [
            kit.rollback(job, 4, snapshot_id="step4-99"),
            kit.rollback(job, 6, snapshot_id="step6-4"),  # before rank 0 knows that it is NaN
        ],
        7: lambda job: [kit.rollback(job, 6), kit.rollback(job, 4)],
    },
}
SHARDED_PLANS = {
    "unwatched": {},
    "skip": {7: lambda job: kit.rollback(job, 4, skip_steps=1)},
    "pending": {7: lambda job: kit.rollback(job, 4, snapshot_id="step4-3")},
}


def train(strategy, plan, rank):
    sharded = strategy == "fsdp2"
    plans = PLANS | SHARDED_PLANS | {"refused": REFUSED[strategy]}
    is_disturbed = sharded and plan == "refused"
    ran = kit.train(
        partial(DataLoader, kit.Points(noise=True), batch_size=4, shuffle=True, num_workers=1),
        plan=plans[plan] if rank == 0 else {},
        net=(jobs.PendingNet if plan == "pending" else jobs.ShardedNet) if sharded else kit.Net,
        watched=plan != "unwatched",
        callbacks=[jobs.NanInOneShard(), jobs.OtherLayout()] if is_disturbed else [],
        snapshot_every=2,
        max_epochs=3,
        accelerator="cpu",
        strategy=ModelParallelStrategy(2, 1) if sharded else "ddp",
        devices=2,
        val=sharded,  # a validation leaves the root's parameters gathered
        default_root_dir=Path(sys.argv[2]),
    )
    return {
        "history": ran.history,
        "results": [r.model_dump(mode="json") for r in ran.results],
        "weights": {
            name: jobs.local(value).double().flatten().tolist()
            for name, value in ran.weights.items()
            if "running" not in name  # batch norm counts what its own rank sees
        },
    }


def norms(*disturbing, **options):
    _, found = jobs.train_plain(
        jobs.ShardedPlainNet,
        part=int(os.environ["RANK"]),
        parts=2,
        callbacks=disturbing,
        accelerator="cpu",
        strategy=ModelParallelStrategy(2, 1),
        devices=2,
        **options,
    )
    return found


def loop(rank, disturbed):
    """Train by hand under FSDP2, with an evaluation after every step."""
    torch.manual_seed(3)
    core = jobs.Core()
    mesh = init_device_mesh("cpu", (2,))
    for part in (core.layers[0]["fc2"], core):
        fully_shard(part, mesh=mesh)
    optimizer = torch.optim.AdamW(core.parameters(), lr=0.01, foreach=False)
    points, history = kit.Points(80), []
    sampler = DistributedSampler(points, 2, rank, shuffle=True)
    with watch(
        core,
        optimizers=optimizer,
        loaders=DataLoader(points, batch_size=4, sampler=sampler),
        url="http://127.0.0.1:9",
        run="test",
        snapshot_every=2,
        transport=kit.DeadTransport(),
        reporting=ReporterSettings(register_wait_seconds=0, spool_bytes=0),
    ) as job:
        for x, y, ids in job.batches(steps=10):
            loss = torch.nn.functional.mse_loss(core(x), y)
            loss.backward()
            job.after_backward()
            optimizer.step()
            optimizer.zero_grad()
            job.step(loss)
            history.append((job.global_step, ids.tolist(), loss.item()))
            if disturbed and rank == 0 and job.global_step == 5 and len(history) == 5:
                job._job.inbox.offer([kit.rollback(job._job, 2)])
            with torch.no_grad():
                core(x)  # leaves the root's parameters gathered
    weights = [jobs.local(parameter).tolist() for parameter in core.parameters()]
    return {"history": history, "weights": weights}


if __name__ == "__main__":
    torch.set_num_threads(1)
    local_rank = int(os.environ["LOCAL_RANK"])
    plans = [("ddp", plan) for plan in [*PLANS, "refused"]]
    plans += [("fsdp2", plan) for plan in [*PLANS, *SHARDED_PLANS, "refused"]]
    reports = {f"{strategy}/{plan}": train(strategy, plan, local_rank) for strategy, plan in plans}
    reports["norms"] = norms()
    reports["nan"] = norms(jobs.NanGradient())
    reports["guarded"] = norms(jobs.NanGradient(), watcher_options={"guard": "skip_step"})
    reports["loop"], reports["loop-rewound"] = loop(local_rank, False), loop(local_rank, True)
    Path(sys.argv[1]).write_text(json.dumps(reports))
