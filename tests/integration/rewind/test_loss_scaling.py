"""Loss scaling in fp16: skipped steps, the scale, and gradients in their own unit."""

from __future__ import annotations

import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from stabilizer.agent import Job
from stabilizer.agent.integrations.job import NullTelemetry

STEPS = 12


class Recorder(NullTelemetry):
    def __init__(self):
        self.frames = []

    def put(self, frames):
        self.frames.append(frames)

    def series(self, name):
        """The values of a series by step; NaN where it is absent."""
        values = {}
        for frames in self.frames:
            values[frames.step] = math.nan
            for catalog, block in frames.blocks():
                names = [str(key) for key in catalog.series]
                if name not in names:
                    continue
                column = names.index(name)
                if block.present is None or block.present[0][column]:
                    values[frames.step] = float(block.values[0][column])
        return values


class Half(pl.LightningModule):
    """A small net under a scaler that begins far too high."""

    def __init__(self, fused):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
        self.fused, self.weights = fused, []

    def training_step(self, batch, batch_idx):
        x, y, _ = batch
        return nn.functional.mse_loss(self.net(x).float().squeeze(1), y)

    def validation_step(self, batch, batch_idx):
        """Lightning wants one."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.weights.append(self.net[0].weight.detach().clone())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=self.fused)


@pytest.fixture
def run(kit, monkeypatch):
    """Train in fp16; returns the module and what was reported."""

    def run(*, fused=False, precision=True):
        recorder = Recorder()
        monkeypatch.setattr(Job, "_make_telemetry", lambda job, register: recorder)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**19, growth_interval=1000)
        plugins = [MixedPrecision("16-mixed", "cpu", scaler)] if precision else None
        ran = kit.train(
            DataLoader(kit.Points(4), batch_size=4),  # one batch, again and again
            net=lambda: Half(fused),
            plugins=plugins,
            accumulate_grad_batches=1,
            max_epochs=STEPS,
            max_steps=STEPS,
            val=False,
        )
        return ran.net, recorder

    return run


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_leaves_out_is_reported(run, fused):
    net, recorder = run(fused=fused)
    skipped = recorder.series("step_skipped")
    scales = recorder.series("loss_scale")
    assert set(skipped.values()) == {0.0, 1.0}  # both happen
    before, scale = None, 2.0**19
    for step, weights in enumerate(net.weights, start=1):
        changed = before is None or not torch.equal(weights, before)
        if before is not None:
            assert changed == (skipped[step] == 0.0), step
        scale = scale / 2 if skipped[step] else scale
        assert scales[step] == scale
        before = weights


def test_gradients_are_reported_without_the_scale(run):
    plain = run(precision=False)[1].series("grad_norm")
    for fused in (False, True):
        recorder = run(fused=fused)[1]
        norms, skipped = recorder.series("grad_norm"), recorder.series("step_skipped")
        assert not math.isfinite(norms[1])
        taken = next(step for step in skipped if not skipped[step])
        # All steps before were left out: the weights are still those of the first step.
        assert norms[taken] == pytest.approx(plain[1], rel=0.01)


def test_a_job_without_a_scaler_reports_no_scale(run):
    recorder = run(precision=False)[1]
    assert all(math.isnan(value) for value in recorder.series("loss_scale").values())
    assert all(math.isnan(value) for value in recorder.series("step_skipped").values())
