"""`stabilizer backtest`: files in, commands and a report out."""

import csv
import json

import pytest

RULES = """
rules:
  - {name: high, select: {metric: loss}, detect: {threshold: {above: 10}}, severity: divergence}
policy:
  ladder: [{reduce_lr: {factor: 0.5, steps: 20}}, pause]
  act_on: {any: ["severity:divergence"]}
"""


@pytest.fixture
def files(tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    for name, losses in (("calm", [2.0] * 200), ("lost", [2.0] * 100 + [50.0] * 100)):
        lines = [f"{step},{loss},nan" for step, loss in enumerate(losses, start=1)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["step,loss,grad_norm", *lines]) + "\n")
    return tmp_path


def test_commands_are_printed_and_written(run, files):
    out = files / "out.csv"
    result = run(
        "backtest",
        files / "calm.csv",
        files / "lost.csv",
        "--rules",
        files / "rules.yaml",
        "--proposals",
        out,
    )
    assert result.exit_code == 0, result.output
    assert "calm: 200 steps from 1 to 200, 0 alerts, 0 commands" in result.stdout
    assert "step 101: reduce_lr: multiply the learning rate by 0.5 for 20 steps" in result.stdout
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert {row["run"] for row in rows} == {"lost"}
    assert rows[0] == {"run": "lost", "step": "101", "kind": "reduce_lr"}


def test_json_is_one_object_a_run_and_has_no_bare_nan(run, files):
    result = run("backtest", files / "lost.csv", "--rules", files / "rules.yaml", "--json")
    (line,) = result.stdout.splitlines()
    found = json.loads(line, parse_constant=pytest.fail)
    assert found["run"] == "lost"
    assert found["proposals"][0]["kind"] == "reduce_lr"
    assert found["alerts"][0]["rule"] == "high"


def test_the_report_is_one_file_that_needs_no_other(run, files):
    report = files / "report.html"
    names = (files / "calm.csv").rename(files / "<b>calm&.csv")
    result = run(
        "backtest", names, files / "lost.csv", "--rules", files / "rules.yaml", "--report", report
    )
    assert result.exit_code == 0, result.output
    text = report.read_text()
    assert "&lt;b&gt;calm&amp;" in text
    assert "<b>calm" not in text
    assert text.count("<svg") == 2
    assert 'class="command"' in text
    assert "http" not in text
    assert "<script" not in text


def test_a_folder_is_searched_for_logs(run, files):
    result = run("backtest", files)
    assert result.exit_code == 0
    assert [
        line.partition(":")[0] for line in result.stdout.splitlines() if "steps from" in line
    ] == [
        "calm",
        "lost",
    ]


def test_text_with_a_pattern(run, tmp_path):
    (tmp_path / "mine.out").write_text("S 1 L 2.0\nS 2 L 2.5\n")
    result = run("backtest", tmp_path / "mine.out", "--pattern", r"S (?P<step>\d+) L (?P<loss>\S+)")
    assert "mine: 2 steps from 1 to 2" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.csv",), "cannot be read"),
        (("rules.yaml",), "in no format"),
        (("calm.csv", "--format", "xml"), "allowed: tensorboard"),
        (("calm.csv", "--pattern", "("), "regular expression"),
        (("calm.csv", "--rules", "calm.csv"), "calm.csv:1"),
        (("calm.csv", "--rules", "none.yaml"), "cannot be read"),
        (("calm.csv", "--proposals", "no/folder.csv"), "cannot be written"),
        (("empty",), "no log"),
    ],
)
def test_what_cannot_be_used_is_named(run, files, monkeypatch, arguments, message):
    (files / "empty").mkdir()
    monkeypatch.chdir(files)
    result = run("backtest", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_several_logs_at_the_same_time_give_the_same(run, files):
    arguments = (
        "backtest",
        files / "calm.csv",
        files / "lost.csv",
        "--rules",
        files / "rules.yaml",
    )
    assert run(*arguments, "--jobs", 2).stdout == run(*arguments).stdout
