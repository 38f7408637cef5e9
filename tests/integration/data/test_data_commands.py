"""From a run to the documents that it read, by the command line, as a person would."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from trainer.cli import app
from trainer.config import load_config
from trainer.data import StreamLoader, open_tokenizer, open_training_stream
from trainer.data.making import make_corpus
from trainer.data.records import read_ledger
from trainer.run import fit

STEPS = 6
SMALL = {
    "model.hidden_size": 32,
    "model.intermediate_size": 48,
    "model.layers": 2,
    "model.heads": 2,
    "optimizer.warmup_steps": 2,
    "training.steps": STEPS,
    "training.checkpoint_every": STEPS,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder, documents=40, seed=0, pairs_format="webdataset", conversations=20)
    return folder


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """The folder of a run over all three kinds of sources, packed."""
    out = tmp_path_factory.mktemp("run")
    fields = SMALL | {
        "data.folder": str(corpus),
        "data.sources": {
            "web_documents": 2,
            "image_text_pairs": {"weight": 1, "kind": "webdataset"},
            "conversations": {"weight": 1, "kind": "conversations"},
        },
        "data.packing": {"documents": 16, "rows": 8},
        "data.batch_size": 4,
        "data.sequence_length": 112,
        "data.max_images": 8,
        "training.out": str(out),
    }
    config = load_config("idefics-tiny", fields=fields)
    summary = fit(config)
    assert summary.steps == STEPS
    assert summary.heldout_loss is not None
    return out


def command(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def lines_of(folder):
    text = (folder / "documents.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_ledger_has_every_step_with_losses_by_document(run):
    entries = list(read_ledger(run / "ledger"))
    assert [entry.step for entry in entries] == list(range(1, STEPS + 1))
    assert {source for entry in entries for source in entry.sources} == {
        "web_documents",
        "image_text_pairs",
        "conversations",
    }
    for entry in entries:
        assert len(entry.losses) == len(entry.sample_ids) >= len(entry.positions) == 4
        assert all(0 < loss < 12 for loss in entry.losses)


def test_a_window_is_written_out_with_the_losses_of_its_steps(run, tmp_path):
    result = command("inspect", "--run", run, "--window", "2:4", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    (entry, *_) = [e for e in read_ledger(run / "ledger") if e.step == 2]
    found = {line["sample_id"]: line for line in lines_of(tmp_path) if line["step"] == 2}
    for sample_id, loss in zip(entry.sample_ids, entry.losses, strict=True):
        assert found[sample_id]["loss"] == pytest.approx(loss)
        assert found[sample_id]["loss_from"] == "ledger"
    assert str(tmp_path / "index.html") in result.stdout
    assert any((tmp_path / "pictures").iterdir())


def test_a_checkpoint_gives_losses_where_none_were_recorded(run, tmp_path):
    (checkpoint,) = (run / "checkpoints").glob("attempt-*")
    window = ["--window", "60:64", "--by", "sample", "--out"]
    without, with_losses = tmp_path / "a", tmp_path / "b"
    assert command("inspect", "--run", run, *window, without).exit_code == 0
    result = command("inspect", "--run", run, *window, with_losses, "--checkpoint", checkpoint)
    assert result.exit_code == 0, result.output
    assert {line["loss"] for line in lines_of(without)} == {None}
    assert "No losses" in (without / "index.html").read_text()
    computed = lines_of(with_losses)
    assert {line["loss_from"] for line in computed} == {"checkpoint"}
    assert all(0 < line["loss"] < 12 for line in computed)
    assert [line["sample_id"] for line in computed] == [
        line["sample_id"] for line in lines_of(without)
    ]


def test_a_configuration_alone_will_do(run, tmp_path):
    arguments = ["--config", run / "config.yaml", "--window", "0:4", "--by", "sample"]
    result = command("inspect", *arguments, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    (entry, *_) = list(read_ledger(run / "ledger"))
    assert [line["sample_id"] for line in lines_of(tmp_path)] == list(entry.sample_ids)


def test_documents_in_quarantine_never_come_again(run, tmp_path):
    file = tmp_path / "quarantine.jsonl"
    result = command("quarantine", file, "--run", run, "--window", "4:12", "--remark", "spam")
    assert result.exit_code == 0, result.output
    held = {json.loads(line)["sample_id"] for line in file.read_text().splitlines()}
    assert len(held) > 8
    config = load_config(
        recipe=str(run / "config.yaml"), overrides=[f"data.quarantine={file}"]
    ).data
    stream = open_training_stream(config, open_tokenizer(config), image_size=16, seed=0)
    loader = StreamLoader(stream, batch_size=4, epoch_samples=60)
    read = {name for batch in loader for name in batch["sample_ids"]}
    assert read
    assert not held & read
    again = command("quarantine", file, "--run", run, "--window", "4:12")
    assert "0 documents added" in again.stdout.replace("\n", "")


def test_steps_that_are_not_in_the_ledger_are_told_by_both_commands(run, tmp_path):
    arguments = ["--run", run, "--window", f"{STEPS}:{STEPS + 3}", "--by", "step"]
    said = f"Not in the ledger: steps {STEPS + 1} to {STEPS + 2}"
    inspected = command("inspect", *arguments, "--out", tmp_path / "out")
    assert inspected.exit_code == 0, inspected.output
    assert said in inspected.stdout
    assert said in (tmp_path / "out" / "index.html").read_text()
    assert said in command("quarantine", tmp_path / "bad.jsonl", *arguments).stdout


def test_a_document_can_be_named(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    result = command("quarantine", file, "--sample-id", "web/a:1", "--sample-id", "web/a:2")
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["sample_id"] for line in file.read_text().splitlines()] == [
        "web/a:1",
        "web/a:2",
    ]


def test_a_run_that_skipped_nothing_says_so(run):
    result = command("skipped", "--run", run)
    assert result.exit_code == 0
    assert "nothing was skipped" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "--window", "3", "--out", "x", "--run", "y"], "--window: '3'"),
        (["inspect", "--window", "1:2", "--out", "x"], "--run: allowed"),
        (["inspect", "--window", "1:2", "--out", "x", "--run", "/none"], "--run: /none"),
        (["skipped", "--run", "/none"], "--run: /none"),
        (["quarantine", "x"], "--sample-id"),
        (["make", "--out", "x", "--conversations", "-1"], "--conversations: -1"),
    ],
)
def test_a_mistake_is_told_with_status_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"no checkpoint", b""], ids=["none", "text", "empty"])
def test_a_checkpoint_that_is_none_is_refused(run, tmp_path, content):
    file = tmp_path / "model.ckpt"
    if content is not None:
        file.write_bytes(content)
    arguments = ["--run", run, "--window", "1:2", "--out", tmp_path / "o", "--checkpoint", file]
    result = command("inspect", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --checkpoint: ")


def test_a_checkpoint_of_another_model_is_refused(run, tmp_path):
    (checkpoint,) = (run / "checkpoints").glob("attempt-*")
    arguments = ["--run", run, "--window", "1:2", "--out", tmp_path, "--checkpoint", checkpoint]
    result = command("inspect", *arguments, "--set", "model.hidden_size=64")
    assert result.exit_code == 2
    assert "is of another model" in result.stderr
