"""Speak to the container engine through its command line, as a person would."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# What the clients themselves need; no secret or setting of the caller reaches a stack by accident.
_KEPT = ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY")
# The oldest way of building that must work: engines without BuildKit.
_BUILD = {"DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0"}


class CommandFailedError(Exception):
    """A command ended badly; the message holds what it said."""

    def __init__(self, command: Sequence[str], code: int, output: str) -> None:
        tail = "\n".join(output.splitlines()[-60:])
        super().__init__(f"{' '.join(command)} ended with status {code}:\n{tail}")
        self.output = output


def run(
    command: Sequence[str | Path],
    *,
    timeout: float = 60,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a command; returns what it wrote, error messages included."""
    words = [str(word) for word in command]
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    done = subprocess.run(
        words,
        env={**kept, **_BUILD, **(environment or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        raise CommandFailedError(words, done.returncode, done.stdout)
    return done.stdout


@dataclass(frozen=True)
class Engine:
    """The engine of this machine, and how its compose is called."""

    compose: tuple[str, ...]
    docker: str = field(default="docker")

    def __call__(self, *arguments: str | Path, timeout: float = 60) -> str:
        return run([self.docker, *arguments], timeout=timeout)

    def has_image(self, name: str) -> bool:
        try:
            self("image", "inspect", name)
        except CommandFailedError:
            return False
        return True

    def pull(self, name: str) -> bool:
        """Get a public image; False where its registry cannot be reached."""
        try:
            self("pull", "-q", name, timeout=300)
        except (CommandFailedError, subprocess.TimeoutExpired):
            return False
        return True


def find_engine() -> Engine | str:
    """Find an engine that answers, or say what is missing."""
    if shutil.which("docker") is None:
        return "there is no program docker"
    try:
        run(["docker", "info"])
    except (CommandFailedError, subprocess.TimeoutExpired) as error:
        return f"no container engine answers: {error}"
    for compose in (("docker", "compose"), ("docker-compose",)):
        try:
            run([*compose, "version"])
        except (CommandFailedError, FileNotFoundError):
            continue
        return Engine(compose)
    return "there is neither `docker compose` nor docker-compose"
