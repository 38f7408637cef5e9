"""One exchange over a real socket."""

import shutil
import socket
import ssl
import subprocess
import threading
from dataclasses import replace

import pytest

from stabilizer.agent.telemetry.http import Endpoint, HttpRequest, HttpTransport
from stabilizer.errors import TelemetryError


@pytest.fixture
def make_transport(server, settings):
    made = []

    def make(url=None, **changes):
        transport = HttpTransport(
            Endpoint.parse(url or server.url), None, replace(settings, **changes)
        )
        made.append(transport)
        return transport

    yield make
    for transport in made:
        transport.close()


def beat(**changes):
    values = {
        "method": "POST",
        "path": "/api/v1/runs/run-1/heartbeat",
        "body": b'{"attempt":1,"step":3}',
        "timeout_seconds": 30.0,
    }
    return HttpRequest(**(values | changes))


def failure(transport, request):
    with pytest.raises(TelemetryError) as caught:
        transport.request(request)
    return caught.value


def test_one_connection_carries_many_requests(server, collector, make_transport):
    transport = make_transport()
    for _ in range(20):
        assert transport.request(beat()).status == 200
    assert server.num_connections == 1
    assert len(collector.heartbeats) == 20


def test_connection_that_went_stale_is_replaced_silently(server, collector, make_transport):
    transport = make_transport()
    for _ in range(3):
        transport.request(beat())
        server.cut()
        server.wait_for(lambda: not server._open)
    assert len(collector.heartbeats) == 3


def test_connection_that_dies_under_a_request_is_tried_once_more(server, make_transport):
    transport = make_transport()
    transport.request(beat())

    def hang_up(server, connection):
        """Close without an answer, as a server does whose keep-alive has just run out."""

    server.behaviour = hang_up
    assert failure(transport, beat()).code == "connection_lost"
    assert server.num_connections == 2


@pytest.mark.parametrize("length", [b"", b"Content-Length: 5000\r\n"])
def test_answer_beyond_the_limit_is_not_read(server, make_transport, length):
    def answer(server, connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + b"x" * 5000)

    server.behaviour = answer
    assert failure(make_transport(answer_bytes=1000), beat()).code == "answer_too_large"


def test_chunks_are_read_whole(server, make_transport):
    def answer(server, connection):
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nRetry-After: 7\r\n\r\n"
        connection.sendall(head + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")

    server.behaviour = answer
    response = make_transport().request(beat())
    assert response.body == b"hello world"
    assert response.retry_after_seconds == 7.0


def test_drip_ends_with_the_deadline_of_the_whole_exchange(server, make_transport):
    stopped = threading.Event()

    def drip(server, connection):
        while not server.released.wait(0.005):
            connection.sendall(b"H")  # fails once the client has gone
        stopped.set()

    server.behaviour = drip
    assert failure(make_transport(), beat(timeout_seconds=0.2)).code == "read_timeout"
    assert not stopped.is_set()


def test_request_can_be_broken_off(server, make_transport):
    server.behaviour = lambda server, connection: server.released.wait()
    asked = []

    def is_cancelled():
        asked.append(1)
        return server.num_requests > 0

    error = failure(make_transport(), beat(timeout_seconds=3600.0, is_cancelled=is_cancelled))
    assert error.code == "cancelled"


def test_large_body_to_a_server_that_never_reads_times_out(make_transport):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        transport = make_transport(f"http://127.0.0.1:{silent.getsockname()[1]}")
        stalled = beat(body=b"x" * 50_000_000, timeout_seconds=0.2)
        assert failure(transport, stalled).code == "read_timeout"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_refused(server, make_transport, status):
    def answer(server, connection):
        line = f"HTTP/1.1 {status} There\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"
        connection.sendall(line.encode())

    server.behaviour = answer
    assert failure(make_transport(), beat()).code == "redirect_refused"
    assert server.num_requests == 1


def test_nobody_there(server, make_transport):
    server.refuse()
    assert failure(make_transport(), beat()).code == "connect_failed"


def test_proxy_is_asked_for_the_whole_address(server, make_transport, monkeypatch):
    lines = []

    def answer(request):
        lines.append(request.path)
        return server_answer

    server_answer = server.collector.answer(None)
    server.collector.faults.append(answer)
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    transport = make_transport("http://watch.example:81/base")
    assert transport.request(beat()).status == 200
    assert lines == ["http://watch.example:81/base/api/v1/runs/run-1/heartbeat"]


class TestTls:
    @pytest.fixture
    def certificate(self, tmp_path):
        if shutil.which("openssl") is None:
            pytest.skip("needs the openssl command to make a certificate")
        command = (
            "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
            "-addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout key.pem -out cert.pem"
        )
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
        return tmp_path / "cert.pem", tmp_path / "key.pem"

    @pytest.fixture
    def tls_server(self, server, certificate):
        """The same server behind TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        plain = server._serve

        def serve(connection):
            try:
                wrapped = context.wrap_socket(connection, server_side=True)
            except (ssl.SSLError, OSError):
                connection.close()
                return
            plain(wrapped)

        server._serve = serve
        return server

    def test_trusted_certificate(
        self, tls_server, certificate, collector, make_transport, monkeypatch
    ):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        transport = make_transport(f"https://localhost:{tls_server.port}")
        for _ in range(5):
            assert transport.request(beat()).status == 200
        assert len(collector.heartbeats) == 5
        tls_server.behaviour = lambda server, connection: server.released.wait()
        assert failure(transport, beat(timeout_seconds=0.2)).code == "read_timeout"

    def test_unknown_certificate_is_refused(self, tls_server, make_transport):
        transport = make_transport(f"https://localhost:{tls_server.port}")
        error = failure(transport, beat())
        assert error.code == "tls_failed"
        assert "certificate verify failed" in str(error)

    def test_plain_server_is_no_tls_server(self, server, make_transport):
        transport = make_transport(f"https://localhost:{server.port}")
        assert failure(transport, beat()).code in ("tls_failed", "connect_timeout")
