"""The command line in this process, and a real collector that it talks to."""

import socket
import threading

import pytest
import uvicorn
from typer.testing import CliRunner

from stabilizer.cli.main import app
from stabilizer.collector.api.app import create_app
from stabilizer.settings import CollectorSettings


@pytest.fixture
def run():
    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def collector(services, clock):
    """A real collector on a socket; its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    settings = CollectorSettings(host="127.0.0.1", port=port, tokens=(), sweep_seconds=60)
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings, clock, services), log_level="warning", lifespan="on")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
    listener.close()
