"""Every command of version 0.1 has its options, its exit status and its machine-readable output.

Texts may be put better; what programs read may only grow.
"""

import re
import shlex
import subprocess
import sys

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from stabilizer.cli.main import app as stabilizer
from tests.compat.conftest import unpack_job
from tests.compat.wire import RECORDED, load
from trainer.__main__ import app as trainer

LINES = load("command_lines.json.gz")
APPS = {"stabilizer": stabilizer, "trainer": trainer}
PLAIN = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands read and write, in the order in which they were recorded."""
    return unpack_job(tmp_path_factory.mktemp("lines"))


@pytest.fixture(scope="module")
def answers(folder):
    """Status and output of every recorded command, as it is today."""
    return {line["command"]: run(line["command"], folder) for line in LINES}


def run(line, folder):
    data = f"data.folder={folder}/corpus"
    program, *arguments = shlex.split(line.format(folder=folder, recorded=RECORDED, data=data))
    if program in APPS:
        told = CliRunner().invoke(APPS[program], arguments, env=PLAIN, prog_name=program)
        status, out, err = told.exit_code, told.stdout, told.stderr
    else:
        command = [sys.executable, "-m", program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        status, out, err = done.returncode, done.stdout, done.stderr
    places = [(str(folder), "{folder}"), (str(RECORDED), "{recorded}")]
    for place, name in places:
        out, err = out.replace(place, name), err.replace(place, name)
    return status, out, err


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["command"])
def test_status_and_kind_of_output(line, answers):
    status, out, err = answers[line["command"]]
    assert status == line["status"], out + err
    assert bool(out) == bool(line["stdout"]), out
    assert bool(err) == bool(line["stderr"]), err


@pytest.mark.parametrize(
    "line", [line for line in LINES if "--help" in line["command"]], ids=lambda x: x["command"]
)
def test_options_arguments_and_commands_are_there(line, answers):
    _, out, _ = answers[line["command"]]
    assert offered(line["stdout"]) <= offered(out)


def offered(text):
    """What a page of help offers: options, and commands at the left of their panels."""
    options = re.findall(r"--[a-z][a-z-]*", text)
    return {*options, *re.findall(r"^│ ([a-z]+) ", text, re.MULTILINE)}


def recorded(command):
    return next(line["stdout"] for line in LINES if line["command"] == command)


@pytest.mark.parametrize(
    "command",
    [
        line["command"]
        for line in LINES
        if "config show" in line["command"]
        and not line["status"]
        and "--help" not in line["command"]
    ],
)
def test_a_shown_configuration_holds_the_same_fields(command, answers):
    assert lacking(as_yaml(recorded(command)), as_yaml(answers[command][1])) == []


def test_shown_rules_are_a_rule_file_with_the_same_rules(answers):
    before, now = (
        as_yaml(recorded("stabilizer rules show")),
        as_yaml(answers["stabilizer rules show"][1]),
    )
    names = [{rule["name"] for rule in rules["rules"]} for rules in (before, now)]
    assert names[0] <= names[1]
    assert before["policy"].keys() <= now["policy"].keys()


@pytest.mark.parametrize(
    ("command", "pattern"),
    [
        ("trainer config explain", r"^([a-z_.0-9]+): "),
        ("trainer config count --preset idefics-1b", r"^(\S+ +[\d,]+)$"),
        ("trainer config list", r"^(\w+:|  \S+)"),
        ("stabilizer rules check {recorded}/rules.yaml", r"^(\S+: ok, \d+ rules, hash [0-9a-f]+)$"),
        (
            "stabilizer rules check {recorded}/bad_rules.yaml {recorded}/rules.yaml",
            r"^(\S+:\d+: [\w.\[\]]+): ",
        ),
        (
            "trainer data skipped --run {folder}/watched --set {data}",
            r"(samples \d+:\d+) .* (step \d+) .* (attempt \d+)",
        ),
    ],
)
def test_lines_that_programs_read_are_there(command, pattern, answers):
    before = re.findall(pattern, recorded(command), re.MULTILINE)
    assert before
    assert set(before) <= set(re.findall(pattern, answers[command][1], re.MULTILINE))


def test_a_database_is_brought_to_the_newest_revision(answers):
    database = "--database sqlite:///{folder}/fresh.db"
    _, upgraded, _ = answers[f"stabilizer db upgrade {database}"]
    assert re.fullmatch(r"revision \d{4}\n", upgraded)
    assert upgraded >= recorded(f"stabilizer db upgrade {database}")


def as_yaml(text):
    return YAML(typ="safe").load(text)


def lacking(before, now, where=""):
    """List the fields that are missing or have another value."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [] if before == now else [f"{where}: {now!r} instead of {before!r}"]
    found = [f"{where}.{name} is missing" for name in before.keys() - now.keys()]
    for name in before.keys() & now.keys():
        found += lacking(before[name], now[name], f"{where}.{name}")
    return found
