"""One rank of a two-rank job; started by test_two_ranks with LOCAL_RANK set."""

import importlib.util
import json
import os
import sys
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from stabilizer.protocol.commands import (
    PauseParameters,
    ReduceLrParameters,
    ResumeParameters,
    StopParameters,
)

_KIT = Path(__file__).parents[1] / "integration" / "rewind" / "conftest.py"
_spec = importlib.util.spec_from_file_location("rewind_kit", _KIT)
kit = importlib.util.module_from_spec(_spec)
sys.modules["rewind_kit"] = kit
_spec.loader.exec_module(kit)

PLANS = {
    "undisturbed": {},
    "rollback": {7: lambda job: kit.rollback(job, 4)},
    "cut": {5: lambda job: kit.command(job, ReduceLrParameters(factor=0.5))},
    "unknown": {7: lambda job: kit.rollback(job, 4, snapshot_id="step4-99")},
    "stop": {6: lambda job: kit.command(job, StopParameters())},
    "pause": {
        6: lambda job: [
            kit.command(job, PauseParameters()),
            kit.rollback(job, 4),
            kit.command(job, ResumeParameters(), attempt=2),
        ]
    },
}


def train(plan, rank):
    ran = kit.train(
        partial(DataLoader, kit.Points(noise=True), batch_size=4, shuffle=True, num_workers=1),
        plan=PLANS[plan] if rank == 0 else {},
        snapshot_every=2,
        max_epochs=3,
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        val=False,
    )
    return {
        "history": ran.history,
        "results": [r.model_dump(mode="json") for r in ran.results],
        "weights": {
            name: value.double().flatten().tolist()
            for name, value in ran.weights.items()
            if "running" not in name  # batch norm counts what its own rank sees
        },
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    local_rank = int(os.environ["LOCAL_RANK"])
    reports = {plan: train(plan, local_rank) for plan in PLANS}
    Path(sys.argv[1]).write_text(json.dumps(reports))
