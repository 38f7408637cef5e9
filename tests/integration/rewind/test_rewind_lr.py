"""Cuts of the learning rate: on top of any scheduler, over rollbacks and checkpoints, read back."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from stabilizer.protocol.commands import CommandState, ReduceLrParameters, RejectReason


def loader(kit):
    return DataLoader(kit.Points(), batch_size=4, shuffle=True)


def per_step(make):
    return lambda optimizer: {"scheduler": make(optimizer), "interval": "step"}


SCHEDULES = {
    "none": None,
    "lambda": per_step(lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.0 / (1 + step))),
    "one_cycle": per_step(lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.05, total_steps=40)),
    "cosine": per_step(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=24)),
    "chained": per_step(
        lambda o: lr_scheduler.SequentialLR(
            o,
            [lr_scheduler.LinearLR(o, 0.1, 1.0, 5), lr_scheduler.ExponentialLR(o, 0.9)],
            milestones=[5],
        )
    ),
    "plateau": lambda o: {
        "scheduler": lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5, threshold=10.0),
        "monitor": "mean_loss",
    },
}


def rates(ran):
    """Effective rate of each completed step, one per step."""
    return {step: float(rate["0"]) for step, rate in ran.conductor.rates if rate}


def expected_scale(step, factor, hold, ramp, cut_at):
    age = step - cut_at - 1
    if age < 0 or age >= hold + ramp:
        return 1.0
    if age < hold:
        return factor
    return factor + (1 - factor) * (age - hold + 1) / (ramp + 1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_cut_holds_and_ramps_back_over_any_schedule(kit, name):
    net = partial(kit.Net, schedule=SCHEDULES[name])
    cut = ReduceLrParameters(factor=0.5, hold_steps=3, ramp_steps=4)
    reference = rates(kit.train(partial(loader, kit), net=net, val=False))
    ran = kit.train(
        partial(loader, kit), net=net, val=False, plan={6: lambda job: kit.command(job, cut)}
    )
    actual = rates(ran)
    for step, rate in reference.items():
        wanted = rate * expected_scale(step, 0.5, 3, 4, cut_at=6)
        # Plateau decides on the loss, which the cut changes; up to then the rates are the same.
        if name != "plateau" or step <= 16:
            assert actual[step] == pytest.approx(wanted, rel=1e-12), step
    result = ran.result()
    assert result.state is CommandState.APPLIED
    assert result.read_back.lr == {"0": pytest.approx(reference[7] * 0.5)}
    assert result.read_back.lr_scale == 0.5


def test_cuts_multiply(kit):
    plan = {
        4: lambda job: kit.command(job, ReduceLrParameters(factor=0.5)),
        6: lambda job: kit.command(job, ReduceLrParameters(factor=0.5, hold_steps=2)),
    }
    actual = rates(kit.train(partial(loader, kit), plan=plan, val=False))
    assert [round(actual[s], 6) for s in (4, 5, 6, 7, 8, 9)] == [
        0.01, 0.005, 0.005, 0.0025, 0.0025, 0.005,
    ]  # fmt: skip


def test_a_cut_outlives_a_rollback_and_a_rollback_can_bring_one(kit):
    cut = ReduceLrParameters(factor=0.5)
    plan = {
        6: lambda job: kit.command(job, cut),
        8: lambda job: kit.rollback(job, 5),
        11: lambda job: kit.rollback(job, 10, reduce_lr=ReduceLrParameters(factor=0.1)),
    }
    ran = kit.train(partial(loader, kit), plan=plan, val=False)
    assert [r.state for r in ran.results] == [CommandState.APPLIED] * 3
    assert [r.read_back.lr_scale for r in ran.results] == [0.5, 0.5, pytest.approx(0.05)]
    assert ran.results[1].read_back.lr == {"0": pytest.approx(0.005)}
    assert ran.results[2].read_back.lr == {"0": pytest.approx(0.0005)}
    assert rates(ran)[ran.trainer.global_step] == pytest.approx(0.0005)


def test_a_step_that_sets_its_own_rate_is_a_mismatch(kit):
    class Stubborn(kit.Net):
        def on_before_optimizer_step(self, optimizer):
            optimizer.param_groups[0]["lr"] = 0.01

    cut = ReduceLrParameters(factor=0.5)
    ran = kit.train(
        partial(loader, kit), net=Stubborn, plan={4: lambda job: kit.command(job, cut)}, val=False
    )
    assert ran.result().state is CommandState.FAILED
    assert ran.result().reason is RejectReason.READ_BACK_MISMATCH


def test_a_rate_kept_in_a_tensor_is_cut_in_place(kit):
    class Tensor(kit.Net):
        def configure_optimizers(self):
            trained = [p for p in self.parameters() if p.requires_grad]
            return torch.optim.Adam(trained, lr=torch.tensor(0.01), foreach=False)

    cut = ReduceLrParameters(factor=0.5, hold_steps=2)
    plan = {4: lambda job: kit.command(job, cut), 9: lambda job: kit.rollback(job, 5)}
    ran = kit.train(partial(loader, kit), net=Tensor, plan=plan, val=False)
    actual = rates(ran)
    assert ran.result().read_back.lr == {"0": pytest.approx(0.005)}
    assert actual[24] == pytest.approx(0.01)
    assert ran.trainer.optimizers[0].param_groups[0]["lr"].item() == pytest.approx(0.01)


@pytest.mark.filterwarnings("ignore")  # of Lightning, about resuming within an epoch
def test_a_job_restarted_from_a_checkpoint_continues_with_the_cut(kit, tmp_path):
    cut = ReduceLrParameters(factor=0.5, hold_steps=8)

    saver = ModelCheckpoint(dirpath=tmp_path, filename="cut", every_n_train_steps=8, monitor=None)
    kit.train(
        partial(loader, kit),
        plan={4: lambda job: kit.command(job, cut)},
        callbacks=[saver],
        enable_checkpointing=True,
        val=False,
        max_epochs=1,
    )
    resumed = kit.train(partial(loader, kit), val=False, ckpt_path=tmp_path / "cut.ckpt")
    # Steps 5 to 12 are cut: the checkpoint of step 8 has used four of the eight.
    assert [rates(resumed)[s] for s in (9, 10, 11, 12, 13)] == pytest.approx(
        [0.005, 0.005, 0.005, 0.005, 0.01]
    )
    assert resumed.trainer.global_step == 24
