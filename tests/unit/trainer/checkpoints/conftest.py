"""A small job with dropout and a loader that knows its place."""

from __future__ import annotations

import logging

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn

from trainer.checkpoints import Checkpoints, CheckpointStore, RandomStates, SafeCheckpointIO

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def pytest_collection_modifyitems(items):
    for item in items:  # Lightning's hints
        item.add_marker(pytest.mark.filterwarnings("ignore:.*does not have many workers"))
        item.add_marker(pytest.mark.filterwarnings("ignore:.*exists and is not empty"))


class Points:
    """Batches by number; 7 in an epoch."""

    batch_size = 4

    def __init__(self):
        self.number = 0

    def __len__(self):
        return 7

    def __iter__(self):
        end = (self.number // 7 + 1) * 7
        while self.number < end:
            self.number += 1
            generator = torch.Generator().manual_seed(self.number)
            yield torch.randn(4, 3, generator=generator)

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]


class Job(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = self.net(batch).square().mean()
        self.losses.append((self.trainer.global_step, loss.item()))
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Kit:
    Callback = Callback

    def __init__(self, folder):
        self.store = CheckpointStore(folder / "checkpoints", keep=2)

    def train(self, *callbacks, steps=12, every=3, resume=None, accumulate=1, health=None):
        seed_everything(0, verbose=False)
        job, points = Job(), Points()
        self.checkpoints = Checkpoints(self.store, every=every, health=health, resumed=resume)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            accumulate_grad_batches=accumulate,
            callbacks=[*callbacks, RandomStates(), self.checkpoints],
            plugins=[SafeCheckpointIO()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(job, points, ckpt_path=resume)
        self.trainer = trainer
        return job

    def steps(self):
        return [(checkpoint.attempt, checkpoint.step) for checkpoint in self.store.all()]


@pytest.fixture
def kit(tmp_path):
    return Kit(tmp_path)
