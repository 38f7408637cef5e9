"""The whole job on two gloo ranks: DDP and FSDP2 against one process, and resuming both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.forked import start_module
from tests.small_model import SMALL_MODEL
from trainer.checkpoints import SafeCheckpointIO
from trainer.config import config_to_yaml, load_config
from trainer.data.making import make_corpus
from trainer.run import export_model, fit

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
SMALL = SMALL_MODEL | {"optimizer.learning_rate": 1e-2, "training.steps": 6}
TWO = {"training.devices": 2}
FSDP = {"training.devices": 2, "training.strategy": "fsdp2"}
UNFREEZING = {
    "model.freeze": ["language_layers", "language_norms", "vision", "vision_norms"],
    "model.unfreeze": [{"step": 3, "parts": ["language_layers", "vision"]}],
}
SAVING = {"training.checkpoint_every": 3, "model.dropout": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    make_corpus(folder / "corpus", documents=40, seed=0)
    return folder


@pytest.fixture(scope="module")
def make(folder):
    def fields(out, **given):
        base = {"data.folder": str(folder / "corpus"), "training.out": str(folder / out)}
        return SMALL | base | {"training.accelerator": "cpu"} | given

    return fields


@pytest.fixture(scope="module")
def ranks(start_ranks, folder, make):
    """Summaries of both ranks by the name of a run; all runs one after the other."""
    at_three = "checkpoints/attempt-0001-step-00000003"
    plan = {
        "ddp": (make("ddp", **TWO), None),
        "ddp-saving": (make("ddp-saving", **TWO, **SAVING), None),
        "ddp-resumed": (make("ddp-saving", **TWO, **SAVING), f"{folder}/ddp-saving/{at_three}"),
        "fsdp": (make("fsdp", **FSDP), None),
        "fsdp-bf16": (make("bf16", **FSDP, **{"training.precision": "bf16"}), None),
        "fsdp-saving": (make("fsdp-saving", **FSDP, **SAVING), None),
        "fsdp-resumed": (make("fsdp-saving", **FSDP, **SAVING), f"{folder}/fsdp-saving/{at_three}"),
        "fsdp-other": (
            make("other", **FSDP, **{"optimizer.learning_rate": 5e-3, "model.dropout": 0.1}),
            f"{folder}/fsdp-saving/{at_three}",
        ),
        "fsdp-unfreezing": (make("unfreezing", **FSDP, **UNFREEZING), None),
        "fsdp-watched": (make("watched", **FSDP, **{"monitor.collector": "solo"}), None),
    }
    start_ranks("trainer_rank.py", json.dumps(plan), folder / "report")
    reports = [json.loads((folder / f"report.{rank}").read_text()) for rank in range(2)]
    return lambda name: [report[name] for report in reports]


@pytest.fixture(scope="module")
def alone(make):
    """One process with the batch of both."""
    fields = make("alone", **{"data.batch_size": 8})
    return fit(load_config("idefics-tiny", fields=fields))


def run_cli(*options):
    result = subprocess.run(
        [sys.executable, "-m", "trainer", "fit", *map(str, options)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result


def run_forked(log, *options):
    """Train in one process; return what it printed."""
    process = start_module("trainer", ["fit", *map(str, options)], log, {"OMP_NUM_THREADS": "1"})
    assert process.wait(300) == 0, log.read_text()
    return log.read_text()


def lines(folder, out):
    text = (folder / out / "losses.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def losses(folder, out, attempt=1):
    return {line["step"]: line["loss"] for line in lines(folder, out) if line["attempt"] == attempt}


@pytest.mark.parametrize("out", ["ddp", "fsdp", "watched"])
def test_two_ranks_train_as_one_process_with_twice_the_batch(folder, ranks, alone, out):
    summaries = ranks({"watched": "fsdp-watched"}.get(out, out))
    assert [summary["samples"] for summary in summaries] == [6 * 8] * 2
    assert list(losses(folder, out).values()) == pytest.approx(
        list(losses(folder, "alone").values()), rel=1e-4
    )
    assert summaries[0]["heldout_loss"] == pytest.approx(alone.heldout_loss, rel=1e-4)
    assert summaries[0]["heldout_loss"] == summaries[1]["heldout_loss"]


def test_bf16_shards_train_nearly_the_same(folder, ranks, alone):
    assert ranks("fsdp-bf16")[0]["steps"] == 6
    assert losses(folder, "bf16")[6] == pytest.approx(losses(folder, "alone")[6], rel=1e-2)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_resume_to_the_bit(folder, ranks, kind):
    ranks(f"{kind}-resumed")
    out = f"{kind}-saving"
    first, again = losses(folder, out, 1), losses(folder, out, 2)
    assert list(again) == [4, 5, 6]
    assert again == {step: first[step] for step in again}


def test_shards_resume_at_another_rate(folder, ranks):
    assert ranks("fsdp-other")[0]["steps"] == 6
    before = {line["step"]: line["lr"] for line in lines(folder, "fsdp-saving")}
    rates = {line["step"]: line["lr"] for line in lines(folder, "other")}
    assert list(rates) == [4, 5, 6]
    assert rates == pytest.approx({step: before[step] / 2 for step in rates})


def test_shards_are_unfrozen_at_their_step(folder, make, ranks, alone):
    ranks("fsdp-unfreezing")
    fields = make("alone-unfreezing", **UNFREEZING, **{"data.batch_size": 8})
    fit(load_config("idefics-tiny", fields=fields))
    one = make("one-unfreezing", **FSDP, **UNFREEZING)
    one |= {"training.devices": 1, "data.batch_size": 8}
    run_forked(folder / "one-unfreezing.log", "--config", _write(folder, one))
    assert alone.steps == 6
    whole = losses(folder, "alone-unfreezing")
    assert losses(folder, "unfreezing") == pytest.approx(whole, rel=1e-4)
    assert losses(folder, "one-unfreezing") == pytest.approx(whole, rel=1e-4)
    assert whole[6] != pytest.approx(losses(folder, "alone")[6], rel=1e-3)


def test_every_rank_writes_its_own_shards(folder, ranks):
    ranks("fsdp-resumed")
    newest = folder / "fsdp-saving" / "checkpoints" / "attempt-0002-step-00000006"
    files = sorted(path.name for path in (newest / "tensors").iterdir())
    assert len(files) == 2
    sizes = [(newest / "tensors" / name).stat().st_size for name in files]
    assert min(sizes) > 0.5 * max(sizes)
    assert json.loads((newest / "manifest.json").read_text())["sharded"] is True
    assert json.loads((newest / "health.json").read_text())["healthy"] is True


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_the_model_of_two_ranks_is_exported_whole(folder, ranks, tmp_path, kind):
    ranks(f"{kind}-resumed")
    taken = export_model(folder / f"{kind}-saving", tmp_path)
    assert taken.name == "attempt-0002-step-00000006"
    trained = SafeCheckpointIO().load_checkpoint(taken)["state_dict"]
    exported = load_file(tmp_path / "model.safetensors")
    assert len(exported) > 50
    assert all(torch.equal(value, trained[f"model.{name}"]) for name, value in exported.items())


def test_shards_of_two_ranks_resume_on_one(folder, make, ranks):
    ranks("fsdp-resumed")
    checkpoint = folder / "fsdp-saving" / "checkpoints" / "attempt-0001-step-00000003"
    config = _write(folder, make("one", **FSDP | {"training.devices": 1}))
    printed = run_forked(folder / "one.log", "--resume", checkpoint, "--config", config)
    assert "random states are not restored" in printed
    assert list(losses(folder, "one")) == [4, 5, 6]


def test_one_command_starts_both_ranks(folder, make, ranks):
    config = _write(folder, make("command", **TWO))
    result = run_cli("--config", config)
    assert result.stdout.count("6 steps in") == 1
    ranks("ddp")
    assert losses(folder, "command") == losses(folder, "ddp")


def _write(folder, fields):
    path = folder / f"{Path(fields['training.out']).name}.yaml"
    path.write_text(config_to_yaml(load_config("idefics-tiny", fields=fields)))
    return path
