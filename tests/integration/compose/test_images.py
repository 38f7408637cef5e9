"""What the images are: small, without secrets, run by a user who owns nothing."""

import json

import pytest

from tests.integration.compose.engine import CommandFailedError
from tests.integration.compose.stack import BUILT

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]

COLLECTOR, DASHBOARD, TRAINER = (f"stabilizer-test/{target}" for target in BUILT.values())
PACKAGES = ("torch", "lightning", "transformers", "sqlalchemy", "fastapi", "dash", "psycopg")
FIND = f"""
from importlib.util import find_spec
print(*[name for name in {PACKAGES!r} if find_spec(name)])
"""


@pytest.fixture
def inside(project):
    """What Python prints in a new container of an image."""

    def run(image, code):
        command = ["run", "--rm", "--network=none", "--entrypoint=python", image, "-c", code]
        return project.engine(*command).strip()

    return run


@pytest.mark.parametrize(
    ("image", "packages"),
    [
        (COLLECTOR, "sqlalchemy fastapi psycopg"),
        (DASHBOARD, "fastapi dash"),
        (TRAINER, "torch lightning transformers"),
    ],
)
def test_an_image_holds_what_it_runs_and_nothing_heavier(inside, image, packages):
    assert inside(image, FIND) == packages


def test_torch_comes_without_cuda(inside):
    assert inside(TRAINER, "import torch; print(torch.version.cuda)") == "None"


@pytest.mark.parametrize("image", [COLLECTOR, DASHBOARD, TRAINER])
def test_an_image_runs_as_a_user_who_can_write_to_the_folder_of_its_state_only(inside, image):
    code = """
import os, site
print(os.getuid(), os.getgid())
places = ["/", "/etc", site.getsitepackages()[0], os.getcwd()]
print(*[os.access(place, os.W_OK) for place in places])
"""
    assert inside(image, code).splitlines() == ["10001 10001", "False False False True"]


@pytest.mark.parametrize("image", [COLLECTOR, DASHBOARD, TRAINER])
def test_neither_settings_nor_layers_hold_what_the_build_was_told(project, secrets, image):
    history = project.engine("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    settings = project.engine("inspect", "--format", "{{json .Config}}", image)
    for told in ("PIP_", "127.0.0.1:187", *secrets.environment().values()):
        assert told not in history.replace("--no-cache", "")
        assert told not in settings


def test_a_collector_without_a_token_does_not_open_its_door(project):
    with pytest.raises(CommandFailedError, match="there is no token"):
        project.engine("run", "--rm", "--network=none", COLLECTOR)


def test_an_image_ends_orderly_and_looks_after_itself(project):
    def config(image):
        return json.loads(project.engine("inspect", "--format", "{{json .Config}}", image))

    assert config(COLLECTOR)["Healthcheck"]["Test"][:2] == ["CMD", "python"]
    assert config(DASHBOARD)["Healthcheck"]["Test"][:2] == ["CMD", "python"]
    assert config(TRAINER)["Healthcheck"]["Test"] == ["NONE"]
    assert {config(image)["StopSignal"] for image in (COLLECTOR, DASHBOARD, TRAINER)} == {"SIGTERM"}
