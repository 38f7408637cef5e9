"""One rank of two whose checkpoints meet trouble; started by test_checkpoint_ranks."""

import json
import os
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from trainer.checkpoints import (
    Checkpoints,
    CheckpointStore,
    RandomStates,
    SafeCheckpointIO,
)


class Job(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class OwnSnapshots(Callback):
    """Rank 1 alone copies the state in memory, as an agent may decide on its own."""

    def __init__(self):
        self.taken = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_rank == 1:
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            self.taken.append(len(checkpoint["random_states"]))


def train(folder):
    store = CheckpointStore(folder)
    checkpoints, snapshots = Checkpoints(store, every=3), OwnSnapshots()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(),
        max_steps=5,
        max_epochs=-1,
        callbacks=[snapshots, RandomStates(), checkpoints],
        plugins=[SafeCheckpointIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(Job(), torch.ones(8, 4, 3))
    kept = [
        (checkpoint.step, len(SafeCheckpointIO().load_checkpoint(checkpoint.path)["random_states"]))
        for checkpoint in store.all()
    ]
    return {
        "steps": trainer.global_step,
        "failures": checkpoints.failures,
        "snapshots": snapshots.taken,
        "kept": kept,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    report = {folder: train(Path(sys.argv[1]) / folder) for folder in sys.argv[3:]}
    Path(f"{sys.argv[2]}.{os.environ['LOCAL_RANK']}").write_text(json.dumps(report))
