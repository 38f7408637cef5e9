"""A job that is not ours: any Lightning module, with or without a schedule, and what rewinds it."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def pytest_collection_modifyitems(items):
    for item in items:  # Lightning's hints about loaders
        item.add_marker(pytest.mark.filterwarnings("ignore:.*does not have many workers"))
        item.add_marker(pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint"))


class Foreign(LightningModule):
    """Two layers fitted with a rate that falls by a tenth of the peak per step."""

    def __init__(self, schedule=True, optimizer=torch.optim.SGD, rate=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3, bias=False)
        self.schedule, self.optimizer, self.rate = schedule, optimizer, rate

    def forward(self, batch):
        return self.head(self.body(batch).tanh())

    def training_step(self, batch, batch_idx):
        return self(batch).logsumexp(-1).square().mean()

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters(), lr=self.rate)
        if not self.schedule:
            return optimizer
        schedule = LambdaLR(optimizer, lambda step: 1 - 0.1 * step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Seen(Callback):
    """What each step was made with: step, rate, weights and gradients."""

    def __init__(self):
        self.rates, self.weights, self.gradients, self.losses = [], [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(round(optimizer.param_groups[0]["lr"], 6))
        self.weights.append({n: p.detach().clone() for n, p in pl_module.named_parameters()})
        self.gradients.append({n: p.grad.clone() for n, p in pl_module.named_parameters()})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


class RewindOnce(Callback):
    """What a rollback does: state of an earlier step, and the step itself."""

    def __init__(self, to_step, at_step):
        self.to_step, self.at_step, self.kept = to_step, at_step, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        owners = [pl_module, trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler]
        if trainer.global_step == self.to_step and self.kept is None:
            self.kept = [copy.deepcopy(owner.state_dict()) for owner in owners]
        if trainer.global_step == self.at_step and self.at_step:
            self.at_step = 0
            for owner, state in zip(owners, self.kept, strict=True):
                owner.load_state_dict(state)
            progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress
            progress.optimizer.step.total.completed = self.to_step


def train(*callbacks, steps=6, module=None, accumulate=1, **options):
    seed_everything(0, verbose=False)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{name: value for name, value in options.items() if name != "resume"},
    )
    data = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    module = module or Foreign()
    trainer.fit(module, DataLoader(data), ckpt_path=options.get("resume"), weights_only=False)
    return trainer


class Kit:
    """Everything a test of a fault needs."""

    Foreign, Seen, RewindOnce, train = Foreign, Seen, RewindOnce, staticmethod(train)

    @staticmethod
    def seen(*callbacks, **options):
        """Train, and return what was seen; the observer comes behind the faults."""
        seen = Seen()
        train(*callbacks, seen, **options)
        return seen


@pytest.fixture
def kit():
    return Kit
