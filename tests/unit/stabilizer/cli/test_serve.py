"""`stabilizer serve` with invalid settings: messages, and status 2."""

import socket

import pytest

from stabilizer.cli.failures import needs_extra
from stabilizer.clock import SystemClock
from stabilizer.collector.services.container import build_services
from stabilizer.settings import CollectorSettings


def refused(result, message):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_beyond_loopback_without_a_token_it_does_not_start(run, tmp_path):
    refused(run("serve", "--host", "0.0.0.0", "--port", 0), "there is no token")
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_reported_before_a_database_is_made(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(run("serve", "--port", port), f"cannot listen on host '127.0.0.1', port {port}")
    assert list(tmp_path.iterdir()) == []


def test_a_host_that_cannot_be_found_is_reported(run):
    result = run("serve", "--host", "no-such-name.localhost.", "--port", 0)
    assert result.exit_code == 2
    assert "cannot listen on host" in result.stderr


def test_a_second_collector_on_the_same_file_is_refused(run):
    settings = CollectorSettings(database_url="sqlite:///a.db", tokens=())
    services = build_services(settings, SystemClock())
    try:
        result = run("serve", "--port", 0, "--database", "sqlite:///a.db")
    finally:
        services.close()
    refused(result, "error: database a.db is in use by another collector")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rules", "none.yaml"), "none.yaml"),
        (("--rules", "bad.yaml"), "error: bad.yaml:1: "),
        (("--database", "mysql://x"), "database_url"),
        (("--database", "sqlite:///no/such/folder/a.db"), "no/such/folder"),
        (("--token-file", "none"), "token_file"),
        (("--port", "70000"), "port"),
    ],
    ids=lambda case: case if isinstance(case, str) else case[-1],
)
def test_what_cannot_be_used_is_reported_without_a_traceback(run, tmp_path, arguments, message):
    (tmp_path / "bad.yaml").write_text("rules: 3\n")
    refused(run("serve", "--port", 0, *arguments), message)


def test_an_unknown_option_shows_the_usage(run):
    result = run("serve", "--prot", 1)
    assert result.exit_code == 2
    assert "--prot" in result.stderr


class TestNeedsExtra:
    def test_a_missing_library_is_named_with_its_extra(self, capsys):
        with pytest.raises(Exception, match="2"), needs_extra("collector"):
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        assert "uvicorn is not installed; install stabilizer[collector]" in capsys.readouterr().err

    def test_a_missing_module_of_ours_is_our_mistake(self):
        with pytest.raises(ModuleNotFoundError), needs_extra("collector"):
            raise ModuleNotFoundError("No module named 'stabilizer.x'", name="stabilizer.x")
