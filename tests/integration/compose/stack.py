"""The services of docker-compose.yml, under a name of their own and gone without a trace."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML

from tests.integration.compose.engine import CommandFailedError, Engine, run

ROOT = Path(__file__).parents[3]
BUILT = {"collector": "collector", "dashboard": "dashboard", "job": "trainer"}
"""Services with an image of ours, and the target in the Dockerfile."""
_BUILD_SECONDS, _UP_SECONDS, _STOP_SECONDS = 1500, 300, 120

T = TypeVar("T")


@dataclass(frozen=True)
class Secrets:
    """What .env holds on a real machine; other ones each time."""

    database: str
    person: str
    job: str

    @classmethod
    def new(cls) -> Secrets:
        # A sign that means something in a URL: the collector must reach its database all the same.
        return cls(secrets.token_urlsafe(16) + "@/#", *(secrets.token_urlsafe(32) for _ in "12"))

    def environment(self) -> dict[str, str]:
        return {
            "POSTGRES_PASSWORD": self.database,
            "STABILIZER_TOKENS": self.person,
            "STABILIZER_JOB_TOKEN": self.job,
        }


def write_override(path: Path, arguments: Mapping[str, str]) -> None:
    """Say what is special about building here: network, package settings, names of the images.

    Names of their own, so that no image of whoever runs the tests is replaced.
    """
    services = {
        service: {
            "image": f"stabilizer-test/{target}",
            "build": {"network": "host", "args": dict(arguments)},
        }
        for service, target in BUILT.items()
    }
    with path.open("w", encoding="utf-8") as file:
        YAML().dump({"services": services}, file)


class Stack:
    """A compose project.

    Args:
        engine: What runs it.
        project: Name; containers, networks and volumes carry it.
        override: Second compose file.
        environment: Variables that the compose files name.
    """

    def __init__(
        self, engine: Engine, project: str, override: Path, environment: Mapping[str, str]
    ) -> None:
        self.engine = engine
        self.project = project
        # Never a .env of whoever runs the tests.
        empty = override.with_name("empty.env")
        empty.touch()
        self._options = ["-f", str(ROOT / "docker-compose.yml"), "-f", str(override)]
        self._options += ["-p", project, "--env-file", str(empty), "--profile", "demo"]
        self._environment = dict(environment)

    def compose(self, *arguments: str, timeout: float = 60, without: Sequence[str] = ()) -> str:
        """Run a compose command; `without` leaves variables unset."""
        command = [*self.engine.compose, *self._options, *arguments]
        environment = {k: v for k, v in self._environment.items() if k not in without}
        return run(command, timeout=timeout, environment=environment, cwd=ROOT)

    def build(self) -> None:
        for service in BUILT:  # in the order of the Dockerfile, whose stages they share
            self.compose("build", service, timeout=_BUILD_SECONDS)

    def up(self, *services: str) -> None:
        """Start services and those they depend on, and wait until all of them are healthy."""
        self.compose("up", "-d", "--no-build", *services, timeout=_UP_SECONDS)
        for service in services:
            self.wait_until_healthy(service)

    def stop(self, *services: str) -> None:
        self.compose("stop", *services, timeout=_STOP_SECONDS)

    def down(self, *, with_volumes: bool = False) -> None:
        options = ["--volumes"] if with_volumes else []
        self.compose("down", "--remove-orphans", *options, timeout=_STOP_SECONDS)

    def leftovers(self) -> dict[str, list[str]]:
        """Containers, networks and volumes of the project that are still there."""
        of_project = f"label=com.docker.compose.project={self.project}"
        found = {
            "containers": self.engine("ps", "-aq", "--filter", of_project),
            "networks": self.engine("network", "ls", "-q", "--filter", of_project),
            "volumes": self.engine("volume", "ls", "-q", "--filter", of_project),
        }
        return {kind: names.split() for kind, names in found.items() if names.split()}

    def container(self, service: str) -> dict[str, Any]:
        """What the engine knows of a service's container, ended or not."""
        of_service = [
            f"--filter=label=com.docker.compose.{key}={value}"
            for key, value in (("project", self.project), ("service", service))
        ]
        ids = self.engine("ps", "-aq", *of_service).split()
        if not ids:
            raise LookupError(f"there is no container of {service}")
        (container,) = json.loads(self.engine("inspect", *ids))
        return container

    def state(self, service: str) -> dict[str, Any]:
        return self.container(service)["State"]

    def execute(self, service: str, *command: str, timeout: float = 60) -> str:
        """Run a command inside a running container; returns what it wrote."""
        return self.engine("exec", self.container(service)["Id"], *command, timeout=timeout)

    def address(self, service: str, port: int) -> str:
        """Where this machine reaches a port of a service; it changes with every start."""
        (binding,) = self.container(service)["NetworkSettings"]["Ports"][f"{port}/tcp"]
        return f"http://{binding['HostIp']}:{binding['HostPort']}"

    def logs(self, lines: int = 40) -> str:
        try:
            return self.compose("logs", "--no-color", f"--tail={lines}")
        except CommandFailedError as error:
            return str(error)

    def wait_until_healthy(self, service: str) -> None:
        def is_healthy() -> bool:
            state = self.state(service)
            if not state["Running"]:
                raise AssertionError(f"{service} ended: {state}\n{self.logs()}")
            return state.get("Health", {"Status": "healthy"})["Status"] == "healthy"

        self.wait_for(is_healthy, f"{service} to be healthy")

    def wait_for(self, answer: Callable[[], T], what: str, seconds: float = 120) -> T:
        """Ask again until the answer is true; tells the logs when it never is."""
        deadline = time.monotonic() + seconds
        pause = threading.Event()
        while not (found := answer()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds:g} s for {what}\n{self.logs()}")
            pause.wait(0.3)
        return found
