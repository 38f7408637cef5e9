"""The command line, in this process; tests/integration starts it as a process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import typer
from ruamel.yaml import YAML
from typer.testing import CliRunner

from trainer.__main__ import app as main_app
from trainer.cli import app
from trainer.config import load_config
from trainer.config.loading import parse_config


@pytest.fixture
def run():
    def invoke(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


def test_config_show_prints_what_would_be_trained(run):
    result = run("config", "show", "--set", "training.steps=77")
    shown = parse_config(YAML(typ="safe").load(result.stdout))
    assert result.exit_code == 0
    assert shown == load_config("idefics-tiny", ["training.steps=77"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "none"], "error: preset: 'none' cannot be used; allowed: idefics-"),
        (["--set", "model.layers"], "error: --set: 'model.layers' cannot be used"),
        (["--set", "optimizer.learning_rate=-1"], "error: optimizer.learning_rate: -1"),
    ],
)
def test_a_mistake_in_the_configuration_is_reported_with_status_2(run, arguments, message):
    result = run("config", "show", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(message)


def test_config_show_takes_a_recipe_by_name_and_a_file(run, tmp_path):
    shown = run("config", "show", "--config", "lower-lr")
    (tmp_path / "mine.yaml").write_text(shown.stdout)
    again = run("config", "show", "--config", tmp_path / "mine.yaml")
    assert shown.exit_code == again.exit_code == 0
    assert again.stdout == shown.stdout
    assert "learning_rate: 0.0005" in shown.stdout


def test_config_list_names_presets_and_recipes_with_what_they_are(run):
    listed = run("config", "list").stdout
    presets, recipes = listed.split("recipes:")
    assert "  idefics-tiny" in presets
    assert "About 2M parameters" in presets
    assert "  lower-lr" in recipes
    assert "Keep calm and lower your learning rate" in recipes


def test_mistakes_of_a_file_are_reported_with_their_lines(run, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: idefics-tiny\ntraining:\n  seed: -1\ndata:\n  workers: none\n")
    result = run("config", "show", "--config", path)
    assert result.exit_code == 2
    assert sorted(line.split(" ")[:3] for line in result.stderr.splitlines()) == [
        ["error:", f"{path}:3:", "training.seed:"],
        ["error:", f"{path}:5:", "data.workers:"],
    ]


def test_a_preset_beside_a_recipe_is_refused(run):
    result = run("config", "show", "--config", "lower-lr", "--preset", "idefics-tiny")
    assert result.exit_code == 2
    assert "either a recipe or a preset" in result.stderr


def test_resuming_what_is_not_there_is_refused(run, corpus, tmp_path):
    result = run("fit", "--data", corpus, "--out", tmp_path, "--resume", "latest")
    assert result.exit_code == 2
    assert "--resume: there is no checkpoint" in result.stderr


def test_data_make_says_what_it_wrote(run, tmp_path):
    result = run("data", "make", "--out", tmp_path / "corpus", "--documents", 6, "--seed", 1)
    assert result.exit_code == 0
    assert "6 web_documents, 3 image_text_pairs" in result.stdout.replace("\n", "")


def test_data_make_refuses_to_overwrite_another_corpus(run, corpus):
    result = run("data", "make", "--out", corpus, "--documents", 6)
    assert result.exit_code == 2
    assert "holds another corpus" in result.stderr


def test_fit_without_a_corpus_names_the_command_that_writes_one(run, tmp_path):
    result = run("fit", "--data", tmp_path / "none", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "data.folder" in result.stderr
    assert "python -m trainer data make" in result.stderr


def test_fit_with_an_absent_policy_file_is_refused(run, corpus, tmp_path):
    arguments = ["--data", corpus, "--out", tmp_path, "--collector", "http://127.0.0.1:9"]
    result = run("fit", *arguments, "--policy", tmp_path / "none.yaml")
    assert result.exit_code == 2
    assert "monitor.policy" in result.stderr


def test_fit_into_a_folder_that_cannot_be_is_refused(run, corpus, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("fit", "--data", corpus, "--out", tmp_path / "file" / "out")
    assert result.exit_code == 2
    assert "training.out" in result.stderr


def test_fit_with_a_vocabulary_that_is_too_small_is_refused(run, corpus, tmp_path):
    arguments = ["--data", corpus, "--out", tmp_path, "--set", "model.vocabulary_size=300"]
    result = run("fit", *arguments)
    assert result.exit_code == 2
    assert "model.vocabulary_size: 300 cannot be used" in result.stderr


def test_a_mode_that_does_not_exist_names_those_that_do(run, corpus, tmp_path):
    result = run("fit", "--data", corpus, "--out", tmp_path, "--mode", "yolo")
    assert result.exit_code == 2
    assert "monitor.mode" in result.stderr
    assert "'observe', 'propose' or 'auto'" in result.stderr


def test_every_mistake_in_a_policy_file_is_reported(run, corpus, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("rules: [{name: A}]\npolicy: {mode: yolo}\n")
    arguments = ["--data", corpus, "--out", tmp_path, "--collector", "solo"]
    result = run("fit", *arguments, "--policy", policy)
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) > 2
    assert all(line.startswith("error: ") for line in lines)
    assert any("policy.mode" in line for line in lines)


def test_config_explain_shows_what_a_field_means(run):
    told = run("config", "explain", "optimizer.gradient_clip")
    assert told.exit_code == 0
    assert told.stdout.splitlines() == [
        "optimizer.gradient_clip: number = 1.0",
        "    Largest global L2 norm of the gradient; 0: no clipping.",
    ]
    assert len(run("config", "explain").stdout.splitlines()) > 300


def test_config_explain_of_no_field_names_those_there_are(run):
    told = run("config", "explain", "optimizer.lr")
    assert told.exit_code == 2
    assert "optimizer.lr: there is no such field; allowed: learning_rate" in told.stderr


def test_config_count_counts_weights_at_equal_size(run):
    def counts(*arguments):
        lines = run("config", "count", *arguments).stdout.splitlines()
        return {line.split()[0]: int(line.split()[1].replace(",", "")) for line in lines}

    as_it_is = counts()
    assert as_it_is["total"] == sum(list(as_it_is.values())[2:])
    assert as_it_is["trainable"] == as_it_is["total"] - 2 * 64  # the idle norm
    deeper = counts("--set", "model.layers_at_equal_size=12")
    assert deeper["total"] == pytest.approx(as_it_is["total"], rel=0.01)
    assert deeper["gates"] == 2 * as_it_is["gates"]


def test_configurations_are_shown_and_described_without_torch():
    script = """
        import sys
        from trainer.__main__ import app

        for arguments in ("list", "show", "explain", "explain faults.lr_restart", "count --help"):
            app(["config", *arguments.split()], standalone_mode=False)
        heavy = {"torch", "lightning", "transformers", "matplotlib", "sklearn", "pyarrow"}
        sys.exit(" ".join(heavy & sys.modules.keys()) or 0)
    """
    result = subprocess.run(
        [sys.executable, "-c", dedent(script)], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "idefics-80b" in result.stdout
    assert "faults.lr_restart.factor: number = 30.0" in result.stdout


def test_every_command_of_the_guide_exists_with_its_options():
    guide = Path(__file__).parents[3] / "docs" / "training.md"
    lines = re.findall(r"^    python -m trainer ([^#\n]+)", guide.read_text(), re.MULTILINE)
    assert len(lines) > 15
    for line in lines:
        command, words = typer.main.get_command(main_app), line.split()
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line
