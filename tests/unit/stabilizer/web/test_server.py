"""The listening socket, the ready file, and what becomes of signals."""

import os
import signal
import socket

import pytest
from uvicorn.server import HANDLED_SIGNALS

from stabilizer.errors import ConfigurationError
from stabilizer.web import server


class TestListen:
    @pytest.mark.parametrize(
        ("host", "url"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")]
    )
    def test_any_free_port_is_reported_in_the_url(self, host, url):
        if host == "::1" and not socket.has_ipv6:
            pytest.skip("this machine has no IPv6")
        with server.listen(host, 0) as listener:
            port = listener.getsockname()[1]
            assert server.url_of(listener) == f"{url}{port}"

    def test_answers_are_not_held_back(self):
        """Asyncio sets TCP_NODELAY only for sockets that name their protocol."""
        with server.listen("127.0.0.1", 0) as listener:
            assert listener.proto == socket.IPPROTO_TCP

    def test_a_taken_port_is_refused(self):
        with server.listen("127.0.0.1", 0) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(ConfigurationError, match=f"port {port}"):
                server.listen("127.0.0.1", port)

    def test_an_address_of_another_machine_is_refused(self):
        with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1"):
            server.listen("192.0.2.1", 0)  # for documentation, RFC 5737


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_before_it_serves_a_signal_ends_the_process(self, number):
        before = signal.getsignal(number)
        with (
            pytest.raises(SystemExit) as caught,
            server.orderly_signals(HANDLED_SIGNALS, lambda: False),
        ):
            os.kill(os.getpid(), number)
        assert caught.value.code == 128 + number
        assert signal.getsignal(number) is before

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_after_an_orderly_end_it_does_nothing_more(self, number):
        before, reached = signal.getsignal(number), False
        with server.orderly_signals(HANDLED_SIGNALS, lambda: True):
            os.kill(os.getpid(), number)
            reached = True  # a signal that still ended the process would not let us get here
        assert reached
        assert signal.getsignal(number) is before


class TestReadyFile:
    def test_it_is_written_in_one_piece(self, tmp_path):
        server.write_ready_file(tmp_path / "ready", "http://127.0.0.1:1")
        assert (tmp_path / "ready").read_text() == "http://127.0.0.1:1\n"
        assert [file.name for file in tmp_path.iterdir()] == ["ready"]

    def test_one_of_an_earlier_process_is_replaced(self, tmp_path):
        (tmp_path / "ready").write_text("http://127.0.0.1:1111111\n")
        server.write_ready_file(tmp_path / "ready", "http://127.0.0.1:2")
        assert (tmp_path / "ready").read_text() == "http://127.0.0.1:2\n"

    def test_a_folder_that_is_not_there_is_reported(self, tmp_path):
        with pytest.raises(ConfigurationError, match="ready file"):
            server.write_ready_file(tmp_path / "none" / "ready", "http://127.0.0.1:1")
