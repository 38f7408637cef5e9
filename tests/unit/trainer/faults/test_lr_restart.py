"""On a job that is not ours: any Lightning module with a torch scheduler."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.utils.data import DataLoader

from stabilizer.errors import ConfigurationError
from trainer.faults import LrRestart
from trainer.faults.lr_restart import restart

# Lightning's hint about workers.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


class Foreign(LightningModule):
    """A line fitted with a schedule that falls by a tenth of the peak per step."""

    def __init__(self, with_schedule=True):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.with_schedule = with_schedule

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        if not self.with_schedule:
            return optimizer
        schedule = LambdaLR(optimizer, lambda step: 1 - 0.1 * step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Rates(Callback):
    def __init__(self):
        self.used = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.used.append(round(optimizer.param_groups[0]["lr"], 6))


class RewindOnce(Callback):
    """What a rollback does to the schedule: state of an earlier step, and the step itself."""

    def __init__(self, to_step, at_step):
        self.to_step, self.at_step, self.kept = to_step, at_step, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        scheduler, optimizer = trainer.lr_scheduler_configs[0].scheduler, trainer.optimizers[0]
        if trainer.global_step == self.to_step and self.kept is None:
            self.kept = (scheduler.state_dict(), optimizer.state_dict())
        if trainer.global_step == self.at_step and self.at_step:
            self.at_step = 0
            scheduler.load_state_dict(self.kept[0])
            optimizer.load_state_dict(self.kept[1])
            progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress
            progress.optimizer.step.total.completed = self.to_step


def train(*callbacks, steps=6, module=None, accumulate=1):
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module or Foreign(), DataLoader(torch.ones(40, 1)))
    return trainer


def rates(*callbacks, **options):
    seen = Rates()
    train(*callbacks, seen, **options)
    return seen.used


def test_the_schedule_begins_again_too_high():
    assert rates(LrRestart(step=3, factor=20)) == [1.0, 0.9, 0.8, 20.0, 18.0, 16.0]


def test_with_accumulation_it_happens_once_at_the_boundary():
    assert rates(LrRestart(step=2, factor=2), steps=4, accumulate=3) == [1.0, 0.9, 2.0, 1.8]


def test_a_rollback_undoes_it_and_it_does_not_happen_again():
    used = rates(LrRestart(step=3, factor=20), RewindOnce(to_step=2, at_step=5), steps=6)
    assert used == [1.0, 0.9, 0.8, 20.0, 18.0, 0.8, 0.7, 0.6, 0.5]


def test_it_is_not_part_of_what_is_saved():
    fault = LrRestart(step=3, factor=20)
    train(fault)
    assert fault.fired
    assert fault.state_dict() == {}


def test_another_fit_can_be_struck_again():
    fault = LrRestart(step=1, factor=2)
    assert rates(fault, steps=3) == rates(fault, steps=3) == [1.0, 2.0, 1.8]


def test_a_job_without_a_schedule_is_told_so():
    with pytest.raises(ConfigurationError, match="no learning-rate schedule"):
        train(LrRestart(step=1, factor=2), module=Foreign(with_schedule=False))


def test_a_schedule_without_a_clock_is_told_so():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    with pytest.raises(ConfigurationError, match="object"):
        restart(object(), 2)
    with pytest.raises(ConfigurationError, match="ReduceLROnPlateau"):
        restart(ReduceLROnPlateau(optimizer), 2)


@pytest.mark.parametrize("options", [{"step": 0, "factor": 2}, {"step": 1, "factor": 0}])
def test_impossible_values_are_refused(options):
    with pytest.raises(ValueError, match="lr restart"):
        LrRestart(**options)
