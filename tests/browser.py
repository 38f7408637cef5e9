"""The browser of the tests: found, or brought where that is possible.

`python tests/browser.py` brings it and says what it did; it never fails, since everything else can
be tested without a browser. Tests that need one then skip with the reason, or fail where CI is set.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 600
ARGUMENTS = (
    "--no-sandbox",  # as root there is none
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def find() -> str | None:
    """Path of a browser of the system, or of Playwright's own; None if there is none."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if path and Path(path).exists() else None


def bring() -> str:
    """Install a browser if there is none; returns what was done, or why it could not be."""
    if found := find():
        return f"browser: {found}"
    reasons = [attempt() for attempt in (_from_debian, _from_playwright)]
    if found := find():
        return f"browser: installed {found}"
    return "browser: none, so that tests of pages are skipped; " + "; ".join(filter(None, reasons))


@contextmanager
def launched() -> Iterator[Browser]:
    """A running browser; without one the test is skipped with the reason, and in CI it fails."""
    path = find()
    if path is None:
        reason = "no browser: " + bring()
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


def _from_debian() -> str:
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return "not root on Debian, so that apt-get cannot install chromium"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "chromium"]):
        if reason := _run(command, environment):
            return reason
    return ""


def _from_playwright() -> str:
    if find():
        return ""
    return _run([sys.executable, "-m", "playwright", "install", "chromium"], dict(os.environ))


def _run(command: list[str], environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{' '.join(command)}: {error}"
    if done.returncode == 0:
        return ""
    tail = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
    return f"{' '.join(command)} failed: {' '.join(tail)}"


if __name__ == "__main__":
    sys.stdout.write(bring() + "\n")
