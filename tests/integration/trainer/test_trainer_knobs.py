"""Knobs of a run that only a whole job can turn: compiling, precision, clipping, throughput."""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from trainer.checkpoints import CheckpointStore, SafeCheckpointIO
from trainer.run import build_job, fit
from trainer.run.throughput import DataWait


@pytest.fixture
def knobs():
    return {
        "model.gate_initializer": "ones",
        "optimizer.warmup_steps": 0,
        "training.steps": 4,
    }


def losses(config):
    lines = (Path(config.training.out) / "losses.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_compiled_model_trains_as_a_plain_one_and_says_what_is_not_measured(make_config, caplog):
    plain = make_config("plain", training__checkpoint_every=4)
    compiled = make_config(
        "compiled",
        training__checkpoint_every=4,
        training__compile=True,
        training__compile_backend="eager",  # inductor wants a compiler of C++
    )
    fit(plain)
    fit(compiled)
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)
    assert "no module is measured" in caplog.text
    # The names of the weights are the same, so that each can go on from the other.
    first, second = (newest(config)["state_dict"] for config in (plain, compiled))
    assert {name: value.shape for name, value in first.items()} == {
        name: value.shape for name, value in second.items()
    }


@pytest.mark.parametrize(("precision", "within"), [("bf16", 2e-2), ("fp16", 2e-3)])
def test_mixed_precision_trains_nearly_as_full_and_keeps_weights_whole(
    make_config, precision, within
):
    full = make_config("full")
    mixed = make_config("mixed", training__precision=precision, training__checkpoint_every=4)
    fit(full)
    fit(mixed)
    assert losses(mixed) == pytest.approx(losses(full), rel=within)
    assert losses(mixed) != losses(full)
    state = newest(mixed)
    assert {value.dtype for value in state["state_dict"].values()} == {torch.float32}
    assert ("MixedPrecision" in state) == (precision == "fp16")  # the scaler's state


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_no_gradient_is_longer_than_the_clip_in_any_precision(make_config, precision):
    """With a large eps the step of AdamW is as long as the gradient."""

    def moved(out, clip):
        config = make_config(
            out,
            training__precision=precision,
            training__checkpoint_every=4,
            optimizer__gradient_clip=clip,
            optimizer__learning_rate=1e-2,
            optimizer__eps=1.0,
            optimizer__weight_decay=0.0,
        )
        before = build_job(config).module.state_dict()
        fit(config)
        after = newest(config)["state_dict"]
        return max(float((after[name] - before[name]).abs().max()) for name in before)

    assert moved("clipped", 1e-6) < 4 * 1e-2 * 1e-6 + 1e-7
    assert moved("free", 0.0) > 1e-4


def newest(config):
    store = CheckpointStore(Path(config.training.out) / "checkpoints")
    return SafeCheckpointIO().load_checkpoint(store.latest().path)


def test_throughput_and_the_part_of_the_device_that_is_used_are_in_the_summary(make_config):
    config = make_config(training__peak_flops=1e12, model__additional_tokens=2)
    summary = fit(config)
    assert summary.tokens_per_second > 0
    assert 0 < summary.mfu < 1
    written = json.loads((Path(config.training.out) / "summary.json").read_text())
    assert written["mfu"] == summary.mfu
    assert fit(make_config("unasked")).mfu is None


def test_waiting_for_data_is_measured_where_lightning_fetches_it():
    class Clock:
        at = 0.0

        def monotonic(self):
            return self.at

    class Slow:
        def __iter__(self):
            for _ in range(3):
                clock.at += 5.0
                yield torch.zeros(1)

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch, batch_idx):
            clock.at += 100.0
            return (self.weight - batch).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    clock = Clock()
    wait = DataWait(clock)
    pl.Trainer(
        accelerator="cpu", max_epochs=1, profiler=wait, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(Module(), Slow())  # fmt: skip
    assert wait.take() == pytest.approx(10.0)  # the first batch comes before training begins
