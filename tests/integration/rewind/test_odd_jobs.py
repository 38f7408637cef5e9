"""Unusual or faulty jobs lose a snapshot or a value, never the training."""

from __future__ import annotations

import threading

import lightning
import pytest
import torch
from torch.utils.data import IterableDataset

from stabilizer.agent.control.host_copy import HostCopier
from stabilizer.agent.integrations.lightning import StabilizerCallback
from stabilizer.agent.integrations.lightning_loop import LightningFit
from stabilizer.errors import ControlError

STEPS = 6


class Job(lightning.LightningModule):
    stabilizer_job = None

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.reports = []

    def training_step(self, batch, _index):
        for name, value, labels in self.reports:
            self.stabilizer_job.log(name, value, **labels)
        return self.layer(batch["x"]).sum()

    def train_dataloader(self):
        return Stream(self.extras)

    extras: dict = {}  # noqa: RUF012  replaced, never changed

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Stream(IterableDataset):
    def __init__(self, extras):
        self.extras = extras

    def __iter__(self):
        for _ in range(STEPS):
            yield {"x": torch.ones(2, 2), **self.extras}


class Watch(StabilizerCallback):
    held = 0

    def on_train_end(self, trainer, pl_module):
        self.held = len(self.job.ring)
        super().on_train_end(trainer, pl_module)


def fit(module, tmp_path, steps=STEPS):
    watch = Watch(None, run="odd", snapshot_every=2)
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch],
        default_root_dir=tmp_path,
    )
    trainer.fit(module)
    assert trainer.global_step == steps
    return watch


class TestSnapshots:
    def test_sparse_buffer_is_no_obstacle(self, tmp_path):
        module = Job()
        module.register_buffer("adjacency", torch.eye(3).to_sparse())
        assert fit(module, tmp_path).held > 0

    def test_batch_that_cannot_be_copied_costs_the_snapshots(self, tmp_path, caplog):
        module = Job()
        module.extras = {"lock": threading.Lock()}
        assert fit(module, tmp_path).held == 0
        assert caplog.text.count("this job cannot be rewound") == 1

    @pytest.mark.parametrize(("failures", "held"), [(2, True), (3, False)])
    def test_hook_that_raises_costs_a_snapshot_and_at_last_all(
        self, tmp_path, caplog, failures, held
    ):
        module, calls = Job(), []

        def hook(_checkpoint):
            calls.append(1)
            if len(calls) <= failures:
                raise OSError("disk full")

        module.on_save_checkpoint = hook
        assert (fit(module, tmp_path).held > 0) is held
        assert caplog.text.count("no snapshot at step") == failures


class TestReports:
    @pytest.mark.parametrize(
        ("name", "value", "labels"),
        [
            ("loss", torch.ones(3), {}),
            ("loss", None, {}),
            ("loss", 10**400, {}),
            ("train/loss", 1.0, {}),
            ("loss", 1.0, {"source": 3}),
            ("loss", 1.0, {"Source": "a"}),
        ],
        ids=str,
    )
    def test_invalid_value_is_dropped_and_logged_once(self, tmp_path, caplog, name, value, labels):
        module = Job()
        module.reports = [(name, value, labels)]
        watch = fit(module, tmp_path)
        assert caplog.text.count("cannot be reported") == 1
        assert watch.held > 0


class TestCheckpoint:
    @pytest.fixture
    def running(self, tmp_path):
        trainer = lightning.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path
        )
        return trainer, LightningFit(trainer, lightning.Callback(), HostCopier())

    def test_whatever_the_writer_raises_is_a_failed_command(self, running, monkeypatch):
        trainer, running_fit = running

        def write(_path):
            raise AttributeError("Can't pickle local object")

        waited = []
        monkeypatch.setattr(trainer, "save_checkpoint", write)
        monkeypatch.setattr(trainer.strategy, "barrier", waited.append)
        with pytest.raises(ControlError, match="pickle"):
            running_fit.save_checkpoint("c")
        assert waited == ["Trainer.save_checkpoint"]

    def test_remote_root_stays_remote(self, running, monkeypatch):
        trainer, running_fit = running
        written = []
        monkeypatch.setattr(trainer, "save_checkpoint", written.append)
        trainer._default_root_dir = "s3://bucket/run"
        path = running_fit.save_checkpoint("c")
        assert path == written[0] == "s3://bucket/run/stabilizer/step=0-c.ckpt"
