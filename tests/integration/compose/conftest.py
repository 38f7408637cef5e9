"""Real containers: images built of this checkout, the services of docker-compose.yml, a browser."""

import os

import httpx
import pytest

from tests.browser import launched
from tests.integration.compose.engine import find_engine
from tests.integration.compose.package_settings import build_arguments
from tests.integration.compose.stack import Secrets, Stack, write_override
from tests.integration.compose.stand_ins import PYTHON, StandIns, missing_programs


@pytest.fixture(scope="session")
def engine():
    found = find_engine()
    if isinstance(found, str):
        pytest.skip(found)
    if not (found.has_image(PYTHON) or found.pull(PYTHON)) and (missing := missing_programs()):
        pytest.skip(f"no image registry can be reached, and {missing}")
    return found


@pytest.fixture(scope="session")
def secrets():
    return Secrets.new()


@pytest.fixture(scope="session")
def project(engine, secrets, tmp_path_factory):
    """The stack with its images built and nothing started; nothing of it stays."""
    folder = tmp_path_factory.mktemp("compose")
    images = StandIns(engine, folder).images()
    environment = secrets.environment() | {
        "POSTGRES_IMAGE": images.postgres,
        # Any port that is free.
        "COLLECTOR_PORT": "0",
        "DASHBOARD_PORT": "0",
    }
    with build_arguments() as arguments:
        write_override(folder / "override.yaml", arguments | {"PYTHON_IMAGE": images.python})
        stack = Stack(
            engine, f"stabilizer-test-{os.getpid()}", folder / "override.yaml", environment
        )
        stack.build()
    try:
        yield stack
    finally:
        stack.down(with_volumes=True)
        assert stack.leftovers() == {}


@pytest.fixture(scope="session")
def stack(project):
    """Database, collector and dashboard, all healthy."""
    project.up("postgres", "collector", "dashboard")
    return project


@pytest.fixture
def ask(stack, secrets):
    """Ask the collector as a person: `ask("/runs")` gives what it answers."""

    def get(path, **parameters):
        answer = call(path, params=parameters, headers=bearer(secrets.person))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def call(path, **options):
        address = stack.address("collector", 8000) + "/api/v1"
        with httpx.Client(base_url=address, timeout=30, trust_env=False) as http:
            return http.get(path, **options)

    get.call = call
    return get


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="session")
def browser():
    with launched() as browser:
        yield browser
