"""Every command of a released version has its options, exit status, and machine-readable output.

Texts may be put better; what programs read may only grow.
"""

import functools
import json
import re
import shlex
import subprocess
import sys

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from stabilizer.cli.main import app as stabilizer
from tests.compat.conftest import Recording, unpack_job
from tests.compat.wire import VERSIONS
from trainer.__main__ import app as trainer

APPS = {"stabilizer": stabilizer, "trainer": trainer}
PLAIN = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


class Lines:
    """The recorded commands of a version, and their answers today.

    Args:
        recording: Of the version.
        known: Answers to commands that read no recorded file, by command.
    """

    def __init__(self, recording, folder, known):
        self.recording = recording
        self.folder = folder
        self.recorded = {line["command"]: line for line in lines_of(recording.version)}
        self.answers = {}
        for command in self.recorded:  # in their order: later ones read what earlier ones wrote
            if "{" not in command and command not in known:
                known[command] = self._run(command)
            self.answers[command] = known.get(command) or self._run(command)

    def stdout(self, command):
        return self.recorded[command]["stdout"]

    def _run(self, line):
        places = {"folder": str(self.folder), "recorded": str(self.recording.folder)}
        data = f"data.folder={self.folder}/corpus"
        program, *arguments = shlex.split(line.format(**places, data=data))
        if program in APPS:
            done = CliRunner().invoke(APPS[program], arguments, env=PLAIN, prog_name=program)
            status, out, err = done.exit_code, done.stdout, done.stderr
        else:
            command = [sys.executable, "-m", program, *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            status, out, err = done.returncode, done.stdout, done.stderr
        for name, place in places.items():
            out, err = (text.replace(place, f"{{{name}}}") for text in (out, err))
        return status, out, err


@functools.cache
def lines_of(version):
    return Recording(version).load("command_lines.json.gz")


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """Return the lines of a version."""
    known = {}

    @functools.cache
    def make(version):
        recording = Recording(version)
        folder = unpack_job(recording, tmp_path_factory.mktemp(version))
        return Lines(recording, folder, known)

    return make


def commands(matches=lambda line: True):
    """Parameters: each version with each of its commands that matches."""
    return pytest.mark.parametrize(
        ("version", "command"),
        [
            pytest.param(version, line["command"], id=f"{version} {line['command']}")
            for version in VERSIONS
            for line in lines_of(version)
            if matches(line)
        ],
    )


@commands()
def test_status_and_kind_of_output(version, command, lines):
    status, out, err = lines(version).answers[command]
    recorded = lines(version).recorded[command]
    assert status == recorded["status"], out + err
    assert bool(out) == bool(recorded["stdout"]), out
    assert bool(err) == bool(recorded["stderr"]), err


@commands(lambda line: "--help" in line["command"])
def test_options_arguments_and_commands_are_there(version, command, lines):
    _, out, _ = lines(version).answers[command]
    assert offered(lines(version).stdout(command)) <= offered(out)


def offered(text):
    """What a page of help offers: options, and commands at the left of their panels."""
    options = re.findall(r"--[a-z][a-z-]*", text)
    return {*options, *re.findall(r"^│ ([a-z]+) ", text, re.MULTILINE)}


@commands(
    lambda line: (
        "config show" in line["command"] and not line["status"] and "--help" not in line["command"]
    )
)
def test_a_shown_configuration_holds_the_same_fields(version, command, lines):
    _, out, _ = lines(version).answers[command]
    assert lacking(as_yaml(lines(version).stdout(command)), as_yaml(out)) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_shown_rules_are_a_rule_file_with_the_same_rules(version, lines):
    _, out, _ = lines(version).answers["stabilizer rules show"]
    before, now = (as_yaml(text) for text in (lines(version).stdout("stabilizer rules show"), out))
    names = [{rule["name"] for rule in rules["rules"]} for rules in (before, now)]
    assert names[0] <= names[1]
    assert before["policy"].keys() <= now["policy"].keys()


@pytest.mark.parametrize("version", VERSIONS)
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
def test_lines_that_programs_read_are_there(version, command, pattern, lines):
    before = re.findall(pattern, lines(version).stdout(command), re.MULTILINE)
    assert before
    _, out, _ = lines(version).answers[command]
    assert set(before) <= set(re.findall(pattern, out, re.MULTILINE))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_database_is_brought_to_the_newest_revision(version, lines):
    command = "stabilizer db upgrade --database sqlite:///{folder}/fresh.db"
    _, upgraded, _ = lines(version).answers[command]
    assert re.fullmatch(r"revision \d{4}\n", upgraded)
    assert upgraded >= lines(version).stdout(command)


@pytest.mark.parametrize("version", VERSIONS[1:])  # 0.1 had no backtest
def test_a_backtest_prints_the_same_fields(version, lines):
    command = "stabilizer backtest {recorded}/log.csv --rules {recorded}/rules.yaml --json"
    before, now = (
        json.loads(lines(version).stdout(command)),
        json.loads(lines(version).answers[command][1]),
    )
    assert before.keys() <= now.keys()


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
