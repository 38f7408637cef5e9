"""Where this machine's pip looks, said so that pip inside a build finds the same."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

from tests.integration.compose.engine import run

CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
"""In the base image: those of this machine."""
# The same ports each time: the address of a folder is part of what the engine knows a layer by.
_FIRST_PORT = 18751
_LINE = re.compile(r"(?P<source>[^.]+)\.(?P<name>[a-z-]+)=(?P<value>.*)")
_ARGUMENTS = {
    "index-url": "PIP_INDEX_URL",
    "extra-index-url": "PIP_EXTRA_INDEX_URL",
    "find-links": "PIP_FIND_LINKS",
}


def pip_settings() -> dict[str, str]:
    """What pip was told on this machine, by its files and by the environment, which wins."""
    lines = run([sys.executable, "-m", "pip", "config", "list"], environment=dict(os.environ))
    found = [match.groupdict() for line in lines.splitlines() if (match := _LINE.match(line))]
    found.sort(key=lambda setting: setting["source"] == ":env:")
    return {setting["name"]: str(ast.literal_eval(setting["value"])) for setting in found}


@contextmanager
def build_arguments() -> Iterator[dict[str, str]]:
    """Arguments of a build on this machine's network; folders are served while this lasts."""
    settings = pip_settings()
    with ExitStack() as servers:
        ports = iter(range(_FIRST_PORT, _FIRST_PORT + 100))
        arguments = {"PIP_CERT": CERTIFICATES}
        for name, argument in _ARGUMENTS.items():
            places = settings.get(name, "").split()
            # An index names its files by ../../files, beside itself.
            levels = 1 if name.endswith("index-url") else 0
            arguments[argument] = " ".join(
                servers.enter_context(_reachable(place, next(ports), levels)) for place in places
            )
        yield arguments


@contextmanager
def _reachable(place: str, port: int, levels: int) -> Iterator[str]:
    """Say an address or a folder as an address that a build can reach.

    Args:
        place: As pip was told it.
        port: To serve a folder on.
        levels: How many folders above it are served.
    """
    folder = _folder(place)
    if folder is None:
        yield place
        return
    top = (folder, *folder.parents)[levels]
    with serving(top, port) as address:
        yield f"{address}/{folder.relative_to(top).as_posix()}/"


def _folder(place: str) -> Path | None:
    parts = urlsplit(place)
    if parts.scheme not in ("", "file"):
        return None
    return Path(unquote(parts.path))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Tell nobody."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True


@contextmanager
def serving(folder: Path, port: int) -> Iterator[str]:
    """Serve a folder on this machine's loopback; on any port if that one is taken."""
    handler = partial(_Quiet, directory=str(folder))
    try:
        server = _Server(("127.0.0.1", port), handler)
    except OSError:
        server = _Server(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
