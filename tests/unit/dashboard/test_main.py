"""`python -m dashboard`: invalid settings are reported with exit status 2."""

import socket

import pytest
import typer
from typer.testing import CliRunner

from dashboard.__main__ import serve
from dashboard.settings import DashboardSettings

TOKEN = "t" * 43


@pytest.fixture
def run(monkeypatch, tmp_path):
    for name in DashboardSettings.model_fields:
        monkeypatch.delenv(f"DASHBOARD_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(serve)
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


def refused(result, *messages):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.output
    for message in messages:
        assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", 70000), "error: port: "),
        (("--collector", "collector:8000"), "error: collector_url: 'collector:8000' is not"),
        (("--collector", "http://h:99999"), "error: collector_url: "),
        (("--token-file", "none"), "token_file 'none' cannot be read"),
        (("--host", "no-such-name.localhost."), "cannot listen on host"),
        (("--prot", 1), "--prot"),
    ],
)
def test_invalid_settings_are_reported_without_a_traceback(run, arguments, message):
    refused(run(*arguments), message)


def test_each_mistake_is_one_line(run, monkeypatch):
    monkeypatch.setenv("DASHBOARD_SESSION_HOURS", "never")
    result = run("--port", -1, "--collector", "x")
    refused(result, "error: port: ", "error: session_hours: ", "error: collector_url: ")
    assert len(result.stderr.splitlines()) == 3


def test_token_is_refused_beyond_loopback(run, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    result = run("--host", "0.0.0.0", "--token-file", "token")
    refused(result, "users sign in with their own tokens")
    assert TOKEN not in result.output


def test_taken_port_is_reported(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(run("--port", port), f"cannot listen on host '127.0.0.1', port {port}")
