"""The IDEFICS job resumes from a checkpoint, whatever ended it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stabilizer.errors import ConfigurationError
from tests.forked import start_module
from trainer.checkpoints import CheckpointError, CheckpointStore, SafeCheckpointIO
from trainer.config import config_to_yaml
from trainer.run import build_job, export_model, fit

ROOT = Path(__file__).parents[3]


@pytest.fixture
def knobs():
    return {"model.dropout": 0.1, "training.steps": 9}


def lines(config):
    text = (Path(config.training.out) / "losses.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def losses(config):
    return {line["step"]: (line["loss"], line["lr"]) for line in lines(config)}


def store(config):
    return CheckpointStore(Path(config.training.out) / "checkpoints")


def weights(checkpoint):
    return SafeCheckpointIO().load_checkpoint(checkpoint.path)["state_dict"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"data__workers": 2, "training__accumulate": 2, "data__epoch_samples": 40},
        {"monitor__collector": "solo", "monitor__snapshot_every": 2},
        {"training__precision": "fp16"},
    ],
    ids=["plain", "workers-accumulation-epochs", "watched", "fp16"],
)
def test_a_resumed_run_is_the_same_to_a_bit(make_config, fields):
    whole = make_config("whole", training__checkpoint_every=9, **fields)
    fit(whole)
    broken = make_config("broken", training__checkpoint_every=5, **fields)
    fit(broken)
    newest, last = store(broken).all()
    assert (newest.step, last.step) == (5, 9)
    summary = fit(broken, resume=str(newest.path))
    assert losses(broken) == losses(whole)
    assert (summary.steps, summary.attempts) == (9, 2)
    assert [line["attempt"] for line in lines(broken)] == [1] * 9 + [2] * 4
    expected, resumed = weights(store(whole).latest()), weights(store(broken).latest())
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())


def test_auto_starts_anew_and_goes_on(make_config):
    config = make_config(training__checkpoint_every=3, training__steps=3)
    assert fit(config, resume="auto").attempts == 1
    longer = make_config(training__checkpoint_every=3, training__steps=5)
    summary = fit(longer, resume="auto")
    assert (summary.steps, summary.attempts, summary.samples) == (5, 2, 20)


def test_another_model_is_refused_with_every_field_that_differs(make_config):
    fit(make_config(training__checkpoint_every=4, training__steps=4))
    other = make_config(training__checkpoint_every=4, model__heads=4, model__hidden_size=64)
    with pytest.raises(ConfigurationError) as caught:
        fit(other, resume="latest")
    fields = [line.split(":")[0] for line in caught.value.message.splitlines()]
    assert fields == ["model.heads", "model.hidden_size"]


OTHER_RATES = [
    {"training__steps": 8},
    {"training__steps": 8, "optimizer__learning_rate": 5e-3, "optimizer__schedule": "cosine"},
    {"training__steps": 8, "optimizer__warmup_steps": 6, "optimizer__weight_decay": 0.3}
    | {"optimizer__betas": [0.7, 0.8], "optimizer__eps": 1e-6},
]


@pytest.mark.parametrize("other", OTHER_RATES, ids=["steps", "rate-and-shape", "all-the-rest"])
def test_a_resume_trains_at_the_rates_that_are_configured_now(make_config, other):
    saving = {"training__checkpoint_every": 4, "optimizer__final_ratio": 0.0}
    fit(make_config(training__steps=4, **saving))
    config, fresh = make_config(**saving | other), make_config("fresh", **saving | other)
    fit(config, resume="latest")
    fit(fresh)
    rates, expected = ([losses(run)[step][1] for step in range(5, 9)] for run in (config, fresh))
    assert rates == expected
    ends = [SafeCheckpointIO().load_checkpoint(store(run).latest().path) for run in (config, fresh)]
    of_both = [end["optimizer_states"][0]["param_groups"] for end in ends]
    for group, wanted in zip(*of_both, strict=True):
        assert group == wanted
    assert ends[0]["lr_schedulers"][0]["base_lrs"] == ends[1]["lr_schedulers"][0]["base_lrs"]


def test_a_resume_leaves_the_rate_of_a_fault_alone(make_config):
    """The same to a bit where nothing has changed; the factor stays on another rate."""
    fields = {"faults__lr_too_high": {"step": 2, "factor": 10.0}, "training__checkpoint_every": 4}
    config = make_config(**fields)
    fit(config)
    whole, checkpoint = losses(config), str(store(config).all()[0].path)
    fit(make_config(**fields), resume=checkpoint)
    assert losses(config) == whole
    peak = 2 * config.optimizer.learning_rate
    fit(make_config(optimizer__learning_rate=peak, **fields), resume=checkpoint)
    again = losses(config)
    assert [again[step][1] for step in range(5, 10)] == pytest.approx(
        [2 * whole[step][1] for step in range(5, 10)]
    )


def test_other_data_is_allowed_and_reported(make_config, caplog):
    fit(make_config(training__checkpoint_every=4, training__steps=4))
    fit(make_config(training__steps=6, optimizer__z_loss_weight=0.0), resume="latest")
    assert "optimizer.z_loss_weight, training.steps" in caplog.text
    assert "the run is not identical to the bit" in caplog.text


@pytest.mark.parametrize(
    "later", [{"model__freeze": []}, {"model__unfreeze": [{"step": 5, "parts": ["vision"]}]}]
)
def test_a_frozen_part_is_unfrozen_on_the_plateau_and_reported(make_config, caplog, later):
    """The run resumes from its checkpoint with a part that its optimizer knew nothing of."""
    frozen = ["vision", "vision_norms"]
    first = make_config(model__freeze=frozen, training__checkpoint_every=4, training__steps=4)
    fit(first)
    before = weights(store(first).latest())
    fields = {"model__freeze": frozen} | later
    second = make_config(training__checkpoint_every=8, training__steps=8, **fields)
    assert fit(second, resume="latest").steps == 8
    after = weights(store(second).latest())
    name = next(name for name in after if name.endswith("encoder.layers.0.mlp.fc2.weight"))
    assert not torch.equal(before[name], after[name])
    assert next(iter(later)).replace("__", ".") in caplog.text


def test_a_new_run_does_not_mix_its_checkpoints_with_those_of_another(make_config):
    config = make_config(training__checkpoint_every=4, training__steps=4)
    fit(config)
    with pytest.raises(ConfigurationError, match="or --resume latest, since checkpoints up to"):
        fit(config)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("latest", "there is no checkpoint in"), ("/nowhere", "is no folder")],
)
def test_a_checkpoint_that_is_not_there_is_reported(make_config, wanted, message):
    with pytest.raises(ConfigurationError, match=message):
        fit(make_config(), resume=wanted)


def test_a_strategy_that_cannot_read_it_is_reported(make_config):
    fit(make_config(training__checkpoint_every=4, training__steps=4))
    with pytest.raises(ConfigurationError, match="allowed: auto or ddp, which wrote"):
        fit(make_config(training__strategy="fsdp2"), resume="latest")


def test_fresh_weights_on_a_resume_show_in_the_loss(make_config):
    fields = {"training__checkpoint_every": 6, "optimizer__learning_rate": 1e-2}
    fit(make_config(training__steps=6, **fields))
    fresh = make_config(training__steps=8, faults__fresh_weights={}, **fields)
    fit(fresh, resume="latest")
    loss = {step: loss for step, (loss, _) in losses(fresh).items()}
    assert loss[7] > loss[6] + 0.5
    assert loss[7] == pytest.approx(loss[1], abs=0.3)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("moment", [pytest.param("open", marks=pytest.mark.long), "os.rename"])
def test_killed_while_a_checkpoint_is_written_the_older_one_is_gone_on_from(
    make_config, tmp_path, moment
):
    whole = make_config("whole", training__steps=6)
    fit(whole)
    config = make_config("killed", training__steps=6, training__checkpoint_every=2)
    arguments = ["fit", "--config", str(Path(config.training.out) / "config.yaml")]
    Path(config.training.out).mkdir()
    (Path(config.training.out) / "config.yaml").write_text(config_to_yaml(config))
    log = tmp_path / "killed.log"
    killed = start_module("tests.integration.trainer.fit_until_killed", [moment, *arguments], log)
    assert killed.wait(280) == -9, log.read_text()
    assert [checkpoint.step for checkpoint in store(config).all()] == [2]
    assert list(store(config).folder.glob(".*.part")), "nothing was being written"
    fit(config, resume="latest")
    assert losses(config) == losses(whole)
    assert not list(store(config).folder.glob(".*.part"))


def test_the_model_of_a_run_is_where_the_next_stage_starts(make_config, tmp_path):
    config = make_config(training__checkpoint_every=4, training__steps=4)
    fit(config)
    export_model(Path(config.training.out), tmp_path / "model")
    trained = weights(store(config).latest())
    second = make_config("second", model__pretrained__whole=str(tmp_path / "model"))
    started = build_job(second).module.state_dict()
    assert all(torch.equal(value, started[name]) for name, value in trained.items())


def test_what_is_no_run_cannot_be_exported(tmp_path):
    with pytest.raises(CheckpointError, match="is not a checkpoint of this trainer"):
        export_model(tmp_path, tmp_path / "model")
    SafeCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="was not written by"):
        export_model(tmp_path / "foreign", tmp_path / "model")
