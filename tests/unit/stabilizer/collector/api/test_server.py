"""The listening socket, and what becomes of signals."""

import os
import signal
import socket
from types import SimpleNamespace

import pytest

from stabilizer.collector.api import server
from stabilizer.errors import ConfigurationError


class TestListen:
    @pytest.mark.parametrize(
        ("host", "url"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")]
    )
    def test_any_free_port_is_told_in_the_url(self, host, url):
        if host == "::1" and not socket.has_ipv6:
            pytest.skip("this machine has no IPv6")
        with server._listen(host, 0) as listener:
            port = listener.getsockname()[1]
            assert server._url_of(listener) == f"{url}{port}"

    def test_answers_are_not_held_back(self):
        """Asyncio sets TCP_NODELAY only for sockets that name their protocol."""
        with server._listen("127.0.0.1", 0) as listener:
            assert listener.proto == socket.IPPROTO_TCP

    def test_a_taken_port_is_refused(self):
        with server._listen("127.0.0.1", 0) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(ConfigurationError, match=f"port {port}"):
                server._listen("127.0.0.1", port)

    def test_an_address_of_another_machine_is_refused(self):
        with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1"):
            server._listen("192.0.2.1", 0)  # for documentation, RFC 5737


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_before_it_serves_a_signal_ends_the_process(self, number):
        before = signal.getsignal(number)
        with (
            pytest.raises(SystemExit) as caught,
            server._orderly_signals(SimpleNamespace(has_served=False)),
        ):
            os.kill(os.getpid(), number)
        assert caught.value.code == 128 + number
        assert signal.getsignal(number) is before

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_after_an_orderly_end_it_does_nothing_more(self, number):
        before, reached = signal.getsignal(number), False
        with server._orderly_signals(SimpleNamespace(has_served=True)):
            os.kill(os.getpid(), number)
            reached = True  # a signal that still ended the process would not let us get here
        assert reached
        assert signal.getsignal(number) is before
