"""Instruction tuning: from the model of a run, on conversations, watched by the same agent."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tests.small_model import SMALL_MODEL
from trainer.checkpoints import CheckpointStore, SafeCheckpointIO
from trainer.config import PARTS, load_config
from trainer.data.making import make_corpus
from trainer.inspection import RunFolder
from trainer.module.parts import part_of
from trainer.run import build_job, export_model, fit

POLICY = """
rules:
  - name: loss_nonfinite
    doc: The loss is NaN or Inf.
    select: {metric: [loss, loss_total], source: null}
    detect: {nonfinite: {}}
    inhibit_after: {}
    severity: divergence
policy:
  ladder:
    - {rollback: {margin: 1, skip: 1}}
  act_on: {any: [severity:divergence]}
  healthy_after: 2
  guards: {budget: {rollback: 3, per_steps: 2000}, cooldown: 2, watch: 4}
"""


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    """A folder with a corpus and the exported model of a short run on it."""
    folder = tmp_path_factory.mktemp("first")
    make_corpus(folder / "data", documents=40, seed=0, conversations=60)
    fields = {
        "data.folder": str(folder / "data"),
        "training.out": str(folder / "out"),
        "training.steps": 4,
        "training.checkpoint_every": 4,
    }
    fit(load_config(recipe="pretrain-tiny", fields=SMALL_MODEL | fields))
    export_model(folder / "out", folder / "model")
    return folder


@pytest.fixture
def make_config(first_stage, tmp_path):
    def make(**fields):
        base = {
            "data.folder": str(first_stage / "data"),
            "model.pretrained.whole": str(first_stage / "model"),
            "training.out": str(tmp_path / "out"),
            "training.steps": 20,
        }
        return load_config(recipe="instruct-tiny", fields=SMALL_MODEL | base | fields)

    return make


def test_everything_learns_from_what_the_assistant_says_alone(make_config):
    config = make_config(**{"training.checkpoint_every": 20, "monitor.collector": None})
    started = build_job(config)
    batch = next(iter(started.loader))
    told = started.tokenizer.decode(batch["input_ids"][0].tolist())
    learned = batch["labels"][0][batch["labels"][0] >= 0].tolist()
    assert "Assistant:" in told
    assert "User:" in told
    assert 0 < len(learned) < batch["attention_mask"][0].sum()
    assert "User:" not in started.tokenizer.decode(learned)

    before = {name: value.clone() for name, value in started.module.state_dict().items()}
    fit(config)
    store = CheckpointStore(Path(config.training.out) / "checkpoints")
    after = SafeCheckpointIO().load_checkpoint(store.latest().path)["state_dict"]
    moved = {part_of(name) for name in after if not torch.equal(before[name], after[name])}
    assert moved == set(PARTS) - {"new_tokens", "added_norms"}  # which this model has not


def test_the_same_agent_sees_it_fail_and_rewinds_it(make_config, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    config = make_config(
        **{
            "monitor.collector": "solo",
            "monitor.mode": "auto",
            "monitor.policy": str(policy),
            "monitor.snapshot_every": 3,
            "faults.nan_gradient": {"step": 12, "module": "lm_head"},
        }
    )
    summary = fit(config)
    lines = (Path(config.training.out) / "losses.jsonl").read_text().splitlines()
    losses = [json.loads(line) for line in lines]
    assert "NaN" in [line["loss"] for line in losses]
    assert (summary.steps, summary.attempts) == (20, 2)
    assert math.isfinite(summary.heldout_loss)
    (skipped,) = RunFolder.open(Path(config.training.out)).skipped_windows()
    assert skipped.end - skipped.start == config.data.batch_size
