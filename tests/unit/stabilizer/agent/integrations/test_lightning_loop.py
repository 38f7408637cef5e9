from __future__ import annotations

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy

from stabilizer.agent.integrations.lightning_loop import find_obstacle


@pytest.fixture
def trainer():
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )


def test_this_version_of_lightning_can_be_rewound(trainer):
    assert find_obstacle(trainer) is None


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("fit_loop", "_load_combined_loader_states"),
        ("epoch_loop", "_skip_next_val"),
        ("val_loop", "_has_run"),
        ("logger_connector", "_current_fx"),
    ],
)
def test_a_missing_internal_is_named(trainer, monkeypatch, path, field):
    owner = {
        "fit_loop": trainer.fit_loop,
        "epoch_loop": trainer.fit_loop.epoch_loop,
        "val_loop": trainer.fit_loop.epoch_loop.val_loop,
        "logger_connector": trainer._logger_connector,
    }[path]
    if field in vars(owner):
        monkeypatch.delattr(owner, field)
    else:
        monkeypatch.delattr(type(owner), field)
    assert find_obstacle(trainer) == f"this version of Lightning has no {path}.{field}"


def test_a_loop_of_the_users_own_is_an_obstacle(trainer, monkeypatch):
    monkeypatch.setattr(trainer, "fit_loop", SimpleNamespace())
    assert "SimpleNamespace" in find_obstacle(trainer)


def test_a_sharded_strategy_is_an_obstacle(trainer):
    trainer.strategy.__class__ = FSDPStrategy
    assert "FSDPStrategy" in find_obstacle(trainer)


def test_a_foreign_device_is_an_obstacle(trainer):
    trainer.strategy._root_device = torch.device("meta")
    assert find_obstacle(trainer) == "rewinding on meta is not supported"
