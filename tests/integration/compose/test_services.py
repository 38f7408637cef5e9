"""What docker-compose.yml promises before any job comes."""

import json

import httpx
import pytest

from tests.integration.compose.conftest import bearer
from tests.integration.compose.engine import CommandFailedError
from tests.integration.compose.stack import ROOT

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("name", ["POSTGRES_PASSWORD", "STABILIZER_TOKENS", "STABILIZER_JOB_TOKEN"])
def test_a_missing_secret_is_named_before_anything_starts(project, name):
    with pytest.raises(CommandFailedError, match=rf"{name}.*copy \.env\.example to \.env"):
        project.compose("config", without=[name])


def test_every_variable_of_the_example_is_one_that_the_services_read(project):
    lines = (ROOT / ".env.example").read_text("utf-8").splitlines()
    names = {line.lstrip("#").partition("=")[0] for line in lines if "=" in line[:30]}
    names = {name for name in names if name.isupper()}
    compose = (ROOT / "docker-compose.yml").read_text("utf-8")
    assert names >= {"POSTGRES_PASSWORD", "STABILIZER_TOKENS", "STABILIZER_JOB_TOKEN"}
    assert [name for name in names if f"${{{name}:" not in compose] == []


@pytest.mark.parametrize(
    ("token", "status", "code"),
    [
        (None, 401, "unauthenticated"),
        ("not-one-of-ours-not-one-of-ours", 401, "unauthenticated"),
    ],
)
def test_the_collector_takes_no_token_but_its_own(ask, token, status, code):
    answer = ask.call("/runs", headers={} if token is None else bearer(token))
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_people_and_jobs_have_tokens_of_their_own(ask, secrets):
    for token in (secrets.person, secrets.job):
        assert ask.call("/runs", headers=bearer(token)).status_code == 200


def test_ports_are_open_to_this_machine_only_and_the_database_has_none(stack):
    for service, port in (("collector", 8000), ("dashboard", 8050)):
        bindings = stack.container(service)["NetworkSettings"]["Ports"][f"{port}/tcp"]
        assert [binding["HostIp"] for binding in bindings] == ["127.0.0.1"]
    ports = stack.container("postgres")["NetworkSettings"]["Ports"]
    assert not any(ports.values())


def test_the_dashboard_does_not_reach_the_database(stack):
    code = "import socket; socket.getaddrinfo('postgres', 5432)"
    with pytest.raises(CommandFailedError, match="gaierror"):
        stack.execute("dashboard", "python", "-c", code)


def test_the_collector_has_brought_its_database_up_to_date(stack):
    code = "from stabilizer.collector.storage.migrate import head; print(head())"
    newest = stack.execute("collector", "python", "-c", code).strip()
    assert stack.execute("collector", "stabilizer", "db", "current") == f"revision {newest}\n"
    address = stack.address("collector", 8000)
    assert httpx.get(f"{address}/readyz", trust_env=False).json() == {"status": "ok"}


@pytest.mark.parametrize("service", ["collector", "dashboard"])
def test_a_service_can_change_nothing_of_itself(stack, service):
    host = stack.container(service)["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["Memory"] > 0
    assert json.dumps(host["SecurityOpt"]) == '["no-new-privileges:true"]'
