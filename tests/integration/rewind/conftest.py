"""A small real job, its runs with and without the agent, and commands fed to it by hand."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics import MeanMetric

from stabilizer.agent import StabilizerCallback
from stabilizer.agent.integrations import job as job_module
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.clock import SystemClock
from stabilizer.errors import TelemetryError
from stabilizer.protocol.commands import (
    Command,
    CommandState,
    RollbackParameters,
    SnapshotTarget,
)

_COMMAND_NUMBERS = count(1)
FEATURES = 6


class DeadTransport:
    """A collector that never answers."""

    def request(self, request):
        raise TelemetryError("connection refused", code="connect_failed")

    def close(self):
        pass


class Points(Dataset):
    """Points with their numbers; `noise` draws from the global random states wherever it runs."""

    def __init__(self, size=60, noise=False):
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(size, FEATURES, generator=generator)
        self.noise = noise

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        x = self.x[index]
        if self.noise:
            x = x + 0.1 * torch.randn(FEATURES) + 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: NPY002
        return x, x.sum(), index


class NoisyStream(IterableDataset):
    """An endless stream without length that draws from the global random state."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(3)
        worker = torch.utils.data.get_worker_info()
        for index in count(worker.id if worker else 0, worker.num_workers if worker else 1):
            x = torch.randn(FEATURES, generator=generator) + 0.1 * torch.randn(FEATURES)
            yield x, x.sum(), index


class StatefulStream:
    """A loader with state_dict, samples and skip_samples, and no length."""

    def __init__(self, batch_size=4, limit=None):
        self.batch_size = batch_size
        self.samples = 0
        self._limit = limit

    def state_dict(self):
        return {"samples": self.samples}

    def load_state_dict(self, state):
        self.samples = state["samples"]

    def skip_samples(self, n):
        self.samples += n

    def __iter__(self):
        while self._limit is None or self.samples < self._limit:
            ids = torch.arange(self.samples, self.samples + self.batch_size)
            x = torch.stack([_point(int(i)) for i in ids])
            x = x + 0.1 * torch.randn_like(x)  # in-process augmentation
            self.samples += self.batch_size
            yield x, x.sum(dim=1), ids


def _point(index):
    return torch.randn(FEATURES, generator=torch.Generator().manual_seed(index))


class Net(pl.LightningModule):
    """Dropout, batch norm, a frozen layer, a metric, and whatever scheduler a test wants."""

    def __init__(self, schedule=None, manual=False):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.ReLU()
        )
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.head = nn.Linear(16, 1)
        self.average = MeanMetric(nan_strategy="ignore")
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.register_buffer("mask", torch.full((2,), float("-inf")), persistent=False)
        self.schedule = schedule
        self.automatic_optimization = not manual
        self.history = []
        self.epoch_values = []
        self.memory = 0

    def training_step(self, batch, batch_idx):
        x, y, ids = batch
        loss = nn.functional.mse_loss(self.head(self.frozen(self.body(x))).squeeze(1), y)
        self.seen += 1
        self.memory += 1
        self.average.update(loss.detach())
        self.log("mean_loss", loss, on_step=False, on_epoch=True)
        self.log("metric", self.average, on_step=False, on_epoch=True)
        self.history.append((self.global_step, tuple(ids.tolist()), loss.item()))
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch, batch_idx):
        x, y, _ = batch
        loss = nn.functional.mse_loss(self.head(self.frozen(self.body(x))).squeeze(1), y)
        self.log("val_loss", loss + 0.01 * torch.rand(()))

    def on_train_epoch_end(self):
        metrics = self.trainer.callback_metrics
        self.epoch_values.append(
            {key: metrics[key].item() for key in ("mean_loss", "metric") if key in metrics}
        )

    def on_save_checkpoint(self, checkpoint):
        checkpoint["memory"] = self.memory

    def on_load_checkpoint(self, checkpoint):
        self.memory = checkpoint["memory"]

    def configure_optimizers(self):
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.01)
        if self.schedule is None:
            return optimizer
        return [optimizer], [self.schedule(optimizer)]


def rollback(job, step, *, skip_steps=0, reduce_lr=None, attempt=None, snapshot_id=None):
    """Return a command to roll back to the snapshot of a step."""
    info = next((i for i in job.ring.inventory() if i.step == step), None)
    target = SnapshotTarget(
        snapshot_id=snapshot_id or info.id,
        attempt=info.attempt if info else 1,
        attempt_id=info.attempt_id if info else None,
        step=step,
    )
    return command(
        job,
        RollbackParameters(target=target, skip_steps=skip_steps, reduce_lr=reduce_lr),
        attempt=attempt,
    )


def command(job, parameters, attempt=None, ttl_seconds=3600):
    """Return a pending command for the job's current attempt, or for another one by number."""
    now = SystemClock().now()
    number = job.attempt if attempt is None else attempt
    first = job._attempt_ids[0]
    return Command(
        id=f"command-{next(_COMMAND_NUMBERS)}",
        run_id="run",
        attempt=number,
        attempt_id=first if number == 1 else job_module.derive_attempt_id(first, number),
        parameters=parameters,
        state=CommandState.PENDING,
        reason="manual",
        issued_at=now,
        expires_at=now + timedelta(seconds=ttl_seconds),
    )


class Conductor(pl.Callback):
    """Feeds commands to the inbox when a step is complete, each once."""

    def __init__(self, watcher, plan):
        self.watcher = watcher
        self.plan = dict(plan)
        self.job = None
        self.rates = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.job = job = self.watcher.job
        self.rates.append((trainer.global_step, dict(job.override.effective)))
        make = self.plan.pop(trainer.global_step, None)
        if make is not None:
            made = make(job)
            job.inbox.offer(made if isinstance(made, list) else [made])

    @property
    def results(self):
        return [] if self.job is None else list(self.job.inbox._settled.values())


@dataclass
class Ran:
    """The result of a run."""

    net: Net
    trainer: pl.Trainer
    weights: dict
    conductor: Conductor | None = None
    results: list = field(default_factory=list)

    @property
    def history(self):
        return self.net.history

    @property
    def losses(self):
        return [loss for _, _, loss in self.net.history]

    def result(self, index=0):
        return self.results[index]


def train(  # every test varies something else
    loader,
    *,
    plan=None,
    watched=True,
    val=True,
    net=None,
    callbacks=(),
    snapshot_every=5,
    watcher_options=None,
    seed=11,
    ckpt_path=None,
    **trainer_options,
):
    """Train from a seed; `plan` maps completed steps to makers of commands."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pl.seed_everything(seed, verbose=False)
    net = (net or Net)()  # after the seed
    watching = {
        "url": "http://127.0.0.1:9",
        "run": "test",
        "snapshot_every": snapshot_every,
        "transport": DeadTransport(),
        "reporting": ReporterSettings(register_wait_seconds=0, spool_bytes=0),
    } | (watcher_options or {})
    watcher = StabilizerCallback(watching.pop("url"), **watching)
    conductor = Conductor(watcher, plan or {}) if watched else None
    options = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 1,
        "accumulate_grad_batches": 2,
        "max_epochs": 3,
        "log_every_n_steps": 1,
        "limit_val_batches": 1.0 if val else 0,
    } | trainer_options
    trainer = pl.Trainer(
        callbacks=[*callbacks, *([conductor, watcher] if watched else [])], **options
    )
    val_loader = DataLoader(Points(12), batch_size=4)
    trainer.fit(net, loader() if callable(loader) else loader, val_loader, ckpt_path=ckpt_path)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    ran = Ran(net, trainer, weights, conductor)
    ran.results = conductor.results if conductor else []
    return ran


def assert_same_from(reference, rewound, step, since):
    """From `step` on, the last part of `rewound` equals `reference`, bit for bit.

    Args:
        reference: The undisturbed run.
        rewound: The run with the rollback.
        step: Completed steps of the restored snapshot.
        since: Index in the history of `rewound` where the last rollback happened.
    """
    expected = [item for item in reference.history if item[0] >= step]
    assert rewound.history[since:] == expected
    assert rewound.weights.keys() == reference.weights.keys()
    for name, value in reference.weights.items():
        assert torch.equal(value, rewound.weights[name]), name


def returned_at(ran):
    """Return the indices in the history where the job was rewound."""
    steps = [step for step, _, _ in ran.history]
    return [i for i in range(1, len(steps)) if steps[i] < steps[i - 1]]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    torch.set_num_threads(1)
    # No collector receives the rest at the end: five seconds of retries prove nothing.
    monkeypatch.setattr(job_module, "_CLOSE_SECONDS", 0.2)


@pytest.fixture
def kit():
    """Everything above, for tests."""
    return SimpleNamespace(
        Conductor=Conductor,
        DeadTransport=DeadTransport,
        Net=Net,
        NoisyStream=NoisyStream,
        Points=Points,
        StatefulStream=StatefulStream,
        assert_same_from=assert_same_from,
        command=command,
        returned_at=returned_at,
        rollback=rollback,
        train=train,
    )
