from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy

from stabilizer.errors import ConfigurationError
from trainer.checkpoints import SafeCheckpointIO, ShardedStrategy
from trainer.run.devices import Bf16Precision, choose_devices

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a GPU to be absent")


@pytest.fixture
def choose(make_config):
    def options(**fields):
        config = make_config(training__accelerator="cpu", **fields).training
        return choose_devices(config).trainer_options(config)

    return options


def kinds(options):
    return [type(plugin) for plugin in options["plugins"]]


def test_by_default_one_process_trains_in_full_precision(choose):
    options = choose()
    assert (options["accelerator"], options["devices"], options["strategy"]) == ("cpu", 1, "auto")
    assert kinds(options) == [SafeCheckpointIO]


def test_several_processes_hold_the_whole_model_unless_it_is_sharded(choose):
    assert isinstance(choose(training__devices=2)["strategy"], DDPStrategy)
    assert isinstance(choose(training__nodes=2)["strategy"], DDPStrategy)
    sharded = choose(training__devices=2, training__strategy="fsdp2")
    assert isinstance(sharded["strategy"], ShardedStrategy)
    assert SafeCheckpointIO not in kinds(sharded)


def test_bf16_has_no_scaler_and_fp16_has_one(choose):
    (_, bf16), (_, fp16) = (
        choose(training__precision=name)["plugins"] for name in ("bf16", "fp16")
    )
    assert isinstance(bf16, Bf16Precision)
    assert bf16.scaler is None
    assert type(fp16) is MixedPrecision
    assert fp16.scaler.is_enabled()


@no_gpu
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(make_config):
    config = make_config().training
    assert choose_devices(config).device == "cpu"
    with pytest.raises(ConfigurationError, match=r"training\.accelerator: 'cuda' cannot be used"):
        choose_devices(replace(config, accelerator="cuda"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("precision", "fp8"),
        ("strategy", "deepspeed"),
        ("devices", 0),
        ("nodes", -1),
        ("checkpoint_every", -1),
        ("keep_checkpoints", 0),
        ("peak_flops", float("nan")),
        ("log_seconds", 0),
    ],
)
def test_a_value_that_cannot_be_used_is_named(make_config, field, value):
    with pytest.raises(ConfigurationError, match=rf"training\.{field}: "):
        make_config(**{f"training__{field}": value})


@pytest.mark.parametrize("field", [{"training__compile": True}, {"training__precision": "fp16"}])
def test_what_does_not_go_with_fsdp2_is_refused(make_config, field):
    with pytest.raises(ConfigurationError, match=r"with training\.strategy fsdp2"):
        make_config(training__strategy="fsdp2", **field)
