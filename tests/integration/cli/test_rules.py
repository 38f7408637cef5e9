"""`stabilizer rules apply` and `versions` with a real collector."""

import re

import pytest


@pytest.fixture
def rules(make, tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_text(make.rules.replace("above: 10}", "above: 20}"))
    return file


def test_a_file_is_applied_listed_and_restored(run, collector, services, run_id, rules, make):
    at = ("--run", run_id, "--collector", collector)
    result = run("rules", "apply", rules, *at, "--reason", "less noise", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "version 1 would be in force" in result.output
    assert services.queries.rules(run_id).text == make.rules
    result = run("rules", "apply", rules, *at, "--reason", "less noise")
    assert "version 2 is in force" in result.output
    assert "changed: loss_high" in result.output
    assert services.queries.rules(run_id).text == rules.read_text()
    listed = run("rules", "versions", *at).output.splitlines()
    assert [re.split(r"\s{2,}", line.strip())[0] for line in listed] == ["2", "1"]
    assert listed[0].endswith("less noise")
    assert run("rules", "versions", *at, "--show", 2).output == rules.read_text()
    result = run("rules", "apply", *at, "--version", 1, "--reason", "back")
    assert "version 3 is in force" in result.output
    assert services.queries.rules(run_id).text == make.rules


def test_rules_of_the_collector(run, collector, services, make, rules):
    run_id = services.runs.register(make.register(policy=None)).run_id
    result = run("rules", "apply", rules, "--collector", collector, "--reason", "ours")
    assert "live runs without rules of their own: 1" in result.output
    assert services.queries.rules(run_id).text == rules.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reason", "x"], "give either FILE or --version"),
        (["--reason", "x", "--version", "9"], "there is no version 9"),
        (["--reason", " ", "--version", "1"], "reason"),
    ],
)
def test_what_cannot_be_applied(run, collector, run_id, arguments, message):
    result = run("rules", "apply", "--run", run_id, "--collector", collector, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_an_invalid_file_is_refused_before_it_is_sent(run, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("rules: []\npolicy: {ladder: [], act_on: {}}\n")
    result = run("rules", "apply", file, "--reason", "x", "--collector", "http://127.0.0.1:9")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 2


def test_unknown_version_is_not_shown(run, collector, run_id):
    result = run("rules", "versions", "--run", run_id, "--collector", collector, "--show", 4)
    assert "no version 4" in result.stderr
