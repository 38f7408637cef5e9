"""The IDEFICS job from configuration to losses file, in this process and as one of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stabilizer.clock import SystemClock
from stabilizer.errors import ConfigurationError
from trainer.config import load_config
from trainer.data.making import make_corpus
from trainer.run import build_job, fit

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, documents=120, seed=0)
    return folder


@pytest.fixture
def make_config(corpus, tmp_path):
    def make(out="out", **fields):
        given = {name.replace("__", "."): value for name, value in fields.items()}
        base = {
            "data.folder": str(corpus),
            "training.out": str(tmp_path / out),
            "training.steps": 12,
            "model.layers": 2,
            "optimizer.warmup_steps": 4,
        }
        return load_config("idefics-tiny", fields=base | given)

    return make


def losses(config):
    lines = (Path(config.training.out) / "losses.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_loss_falls(make_config):
    config = make_config(training__steps=40, optimizer__learning_rate=3e-3)
    summary = fit(config)
    lines = losses(config)
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert lines[0]["loss"] > 6.0
    assert summary.final_loss < 4.0
    assert summary.heldout_loss < 3.5
    assert summary.samples == 40 * 8
    assert (summary.steps, summary.attempts, summary.passed_over) == (40, 1, 0)
    written = json.loads((Path(config.training.out) / "summary.json").read_text())
    assert written["final_loss"] == summary.final_loss


@pytest.fixture
def own_corpus(tmp_path):
    make_corpus(tmp_path / "corpus", documents=40, seed=0)
    return tmp_path / "corpus"


def test_heldout_data_that_is_lost_on_the_way_costs_its_loss_only(make_config, own_corpus, caplog):
    class Loser(SystemClock):  # asked for the first time when everything has been opened
        def monotonic(self):
            shutil.rmtree(own_corpus / "heldout", ignore_errors=True)
            return super().monotonic()

    config = make_config(data__folder=str(own_corpus), training__steps=5)
    assert build_job(config).heldout is not None
    summary = fit(config, clock=Loser())
    assert (summary.steps, summary.heldout_loss) == (5, None)
    written = json.loads((Path(config.training.out) / "summary.json").read_text())
    assert written["heldout_loss"] is None
    assert "no held-out loss, since its documents cannot be read" in caplog.text


def test_heldout_data_that_cannot_be_opened_is_reported_before_training(make_config, own_corpus):
    for file in (own_corpus / "heldout").rglob("*.parquet"):
        file.unlink()
    config = make_config(data__folder=str(own_corpus))
    with pytest.raises(ConfigurationError):
        fit(config)
    assert not (Path(config.training.out) / "losses.jsonl").exists()


def test_the_same_seed_gives_the_same_losses_to_a_bit_whatever_the_workers(make_config):
    def curve(out, **fields):
        config = make_config(out, model__dropout=0.1, **fields)
        fit(config)
        return [line["loss"] for line in losses(config)]

    first = curve("a")
    assert first == curve("b") == curve("c", data__workers=2)
    assert first != curve("d", training__seed=1)


def test_epochs_end_without_leaving_out_a_sample(make_config):
    config = make_config(data__epoch_samples=40)
    assert fit(config).samples == 12 * 8
    assert len(losses(config)) == 12


def test_accumulated_microbatches_are_one_step(make_config):
    config = make_config(training__accumulate=2, data__batch_size=4, data__epoch_samples=40)
    summary = fit(config)
    assert (summary.steps, summary.samples) == (12, 12 * 8)
    assert len(losses(config)) == 12


def test_every_step_of_a_pass_has_all_its_microbatches(make_config):
    config = make_config(training__accumulate=4, training__steps=7)
    per_pass = len(build_job(config).loader)
    assert per_pass % 4 == 0
    assert per_pass // 4 < 7  # a pass ends on the way
    assert fit(config).samples == 7 * 4 * 8


def test_bad_documents_make_the_loss_jump_in_their_window_alone(make_config):
    window = {"first_sample": 160, "samples": 16}
    steps = {"training__steps": 26, "optimizer__learning_rate": 3e-3}
    good = make_config("good", **steps)
    bad = make_config("bad", faults__bad_documents=window, **steps)
    fit(good)
    fit(bad)
    first, second = losses(good), losses(bad)
    assert [a["loss"] for a in first[:20]] == [b["loss"] for b in second[:20]]
    assert all(second[i]["loss"] > first[i]["loss"] + 1.0 for i in (20, 21))


def test_a_restarted_schedule_shows_in_the_rates(make_config):
    config = make_config(
        optimizer__schedule="constant", faults__lr_restart={"step": 6, "factor": 30.0}
    )
    fit(config)
    rates = [line["lr"] for line in losses(config)]
    assert rates[5] == pytest.approx(1e-3)
    assert rates[6:11] == pytest.approx([0.03 * part / 5 for part in (1, 2, 3, 4, 5)])


def test_a_loss_that_is_not_finite_does_not_end_the_job(make_config):
    config = make_config(faults__lr_restart={"step": 2, "factor": 1e9})
    summary = fit(config)
    assert summary.steps == 12
    assert all(isinstance(line["loss"], float | str) for line in losses(config))


def test_building_seeds_all_randomness(make_config):
    first, second = (build_job(make_config()).module.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def run_cli(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "trainer", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=280,
        check=False,
    )


@pytest.mark.timeout(300)
def test_as_a_process_it_is_quiet_and_writes_everything(corpus, tmp_path):
    small = ["--set", "model.layers=2", "--set", "optimizer.warmup_steps=1"]
    result = run_cli("fit", "--data", corpus, "--steps", 3, "--out", tmp_path / "o", *small)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.startswith("3 steps in ")
    assert len(result.stdout.splitlines()) == 1
    assert {path.name for path in (tmp_path / "o").iterdir()} == {
        "config.yaml",
        "ledger",
        "losses.jsonl",
        "summary.json",
    }


@pytest.mark.timeout(300)
def test_a_mistake_ends_the_process_with_status_2_and_one_line(corpus, tmp_path):
    result = run_cli("fit", "--data", corpus, "--out", tmp_path, "--set", "model.heads=7")
    assert result.returncode == 2
    assert result.stderr.startswith("error: model.heads: 7 cannot be used")
    assert len(result.stderr.splitlines()) == 1


def test_being_watched_changes_no_loss_by_a_bit(make_config):
    def curve(out, **fields):
        config = make_config(out, model__dropout=0.1, **fields)
        fit(config)
        return [line["loss"] for line in losses(config)]

    assert curve("alone") == curve("watched", monitor__collector="solo", monitor__mode="auto")


def test_bad_documents_of_our_own_are_reported(make_config, caplog):
    config = make_config(faults__bad_documents={"first_sample": 16, "samples": 8})
    fit(config)
    assert "bad_documents: documents 16 to 23 of the stream" in caplog.text
