"""Runs the command line in this process."""

import pytest
from typer.testing import CliRunner

from stabilizer.cli.main import app
from stabilizer.settings import CollectorSettings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """No settings but those of the test, and a folder of its own to write to."""
    for name in CollectorSettings.model_fields:
        monkeypatch.delenv(f"STABILIZER_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run():
    """Run `stabilizer` with arguments; the result has exit_code, stdout and stderr."""

    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run
