"""A real HTTP server that misbehaves on demand, in front of a collector in memory."""

import contextlib
import importlib.util
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from stabilizer.agent.telemetry.http import HttpRequest
from stabilizer.agent.telemetry.reporter import Reporter
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.clock import SystemClock
from stabilizer.protocol.runs import RunState

UNIT_KIT = Path(__file__).parents[2] / "unit/stabilizer/agent/telemetry/conftest.py"
PATIENCE_SECONDS = 60


@pytest.fixture(scope="session")
def kit():
    """The makers of the unit tests."""
    spec = importlib.util.spec_from_file_location("telemetry_kit", UNIT_KIT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def read_request(stream):
    """Read one request; None at the end of the connection."""
    line = stream.readline()
    if not line:
        return None
    method, path, _ = line.decode().split()
    length, headers = 0, {}
    while (header := stream.readline().strip()) != b"":
        name, _, value = header.decode().partition(":")
        headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", 0))
    request = HttpRequest(method=method, path=path, body=stream.read(length), timeout_seconds=0.0)
    return request, headers


def render(response):
    head = f"HTTP/1.1 {response.status} x\r\nContent-Length: {len(response.body)}\r\n\r\n"
    return head.encode() + response.body


class Server:
    """Answers well, or as `behaviour(server, connection)` does; counts what it was asked."""

    def __init__(self, collector):
        self.collector = collector
        self.behaviour = None
        self.changed = threading.Condition()
        self.num_requests = 0
        self.num_connections = 0
        self.headers = []
        self.released = threading.Event()
        self._open = set()
        self._listener = None
        self.port = 0
        self.listen()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def listen(self):
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def refuse(self):
        """Stop listening: connections are refused."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def cut(self):
        """Cut every open connection."""
        with self.changed:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def become(self, behaviour):
        """Behave like this from now on; None for well."""
        self.released.set()
        self.cut()
        self.released = threading.Event()
        self.behaviour = behaviour

    def wait_for(self, condition):
        """Wait until something is true that requests or connections bring about."""
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE_SECONDS)

    def close(self):
        self.released.set()
        self.refuse()
        self.wait_for(lambda: not self._open)

    def _accept(self, listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with self.changed:
            self._open.add(connection)
            self.num_connections += 1
            self.changed.notify_all()
        try:
            with connection, connection.makefile("rb") as stream:
                while self._serve_one(connection, stream):
                    pass
        except (OSError, ValueError):
            pass  # the other end has had enough, or speaks no HTTP
        finally:
            with self.changed:
                self._open.discard(connection)
                self.changed.notify_all()

    def _serve_one(self, connection, stream):
        read = read_request(stream)
        if read is None:
            return False
        request, headers = read
        with self.changed:
            self.num_requests += 1
            self.headers.append(headers)
            behaviour = self.behaviour
            answer = render(self.collector.request(request)) if behaviour is None else b""
            self.changed.notify_all()
        if behaviour is None:
            connection.sendall(answer)
            return True
        behaviour(self, connection)
        return False


@pytest.fixture
def collector(kit):
    return kit.FakeCollector()


@pytest.fixture
def server(collector):
    server = Server(collector)
    yield server
    server.close()


@pytest.fixture
def settings(tmp_path):
    """Short waits, so that hundreds of failures fit into a second."""
    return ReporterSettings(
        register_wait_seconds=0.05,
        connect_timeout_seconds=1.0,
        request_timeout_seconds=0.2,
        linger_seconds=0.01,
        backoff_first_seconds=0.01,
        backoff_max_seconds=0.05,
        refused_retry_seconds=0.05,
        spool_directory=tmp_path / "spool",
        strict=True,
    )


@pytest.fixture
def make_reporter(server, settings, kit):
    made = []

    def make(token=None, register=None, on_answer=lambda answer: None, **changes):
        reporter = Reporter(
            server.url,
            register or kit.make_register(),
            token=token,
            clock=SystemClock(),
            settings=replace(settings, **changes),
            on_answer=on_answer,
        )
        made.append(reporter)
        return reporter

    yield make
    server.become(None)
    for reporter in made:
        reporter.close(RunState.FINISHED, timeout_seconds=PATIENCE_SECONDS)
