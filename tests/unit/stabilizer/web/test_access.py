"""Host and Origin headers: which names mean this server, and which pages this machine serves."""

import pytest

from stabilizer.web.access import HostCheck, is_loopback_origin, origin_host


def loopback(*allowed_hosts):
    return HostCheck(on_loopback=True, allowed_hosts=allowed_hosts)


class TestHost:
    @pytest.mark.parametrize(
        "host",
        ["localhost", "LOCALHOST.:80", "a.localhost:1", "127.8.9.1", "[::1]", "[::1]:65535"],
    )
    def test_a_name_of_loopback_is_accepted(self, host):
        assert loopback().accepts(host)
        assert HostCheck(on_loopback=False, allowed_hosts=["a.example"]).accepts(host)

    @pytest.mark.parametrize(
        "host",
        [
            "",
            " ",
            ":80",
            "localhost:",
            "localhost:80:80",
            "localhost:123456",
            "localhost:8o",
            "localhost/",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "evil.example#localhost",
            "localhost, evil.example",
            "127.1",
            "2130706433",
            "0.0.0.0",
            "::1",
            "[::1",
            "[::1]evil.example",
            "[::]",
            "localh\u00f6st",
        ],
    )
    def test_any_other_name_is_refused(self, host):
        assert not loopback().accepts(host)

    @pytest.mark.parametrize("host", ["A.example", "a.EXAMPLE:8000"])
    def test_an_allowed_name_is_accepted_in_any_case_and_with_any_port(self, host):
        assert loopback("a.Example").accepts(host)

    @pytest.mark.parametrize("host", ["b.a.example", "a.example.", "xa.example", "a.example:x"])
    def test_a_name_like_an_allowed_one_is_refused(self, host):
        assert not loopback("a.example").accepts(host)

    @pytest.mark.parametrize("host", ["evil.example", "", "::::"])
    def test_a_server_for_other_machines_accepts_every_name_unless_some_are_listed(self, host):
        assert HostCheck(on_loopback=False, allowed_hosts=[]).accepts(host)
        assert not HostCheck(on_loopback=False, allowed_hosts=["a.example"]).accepts(host)


class TestOrigin:
    @pytest.mark.parametrize(
        ("origin", "host"),
        [
            ("https://A.Example", "a.example"),
            ("http://a.example:8050", "a.example:8050"),
            ("http://[::1]:8050", "[::1]:8050"),
            ("null", ""),
            ("", ""),
            ("http://[::1", None),
        ],
    )
    def test_its_host_has_the_form_of_a_host_header(self, origin, host):
        assert origin_host(origin) == host

    @pytest.mark.parametrize(
        "origin",
        ["http://localhost:8050", "https://127.0.0.1", "http://[::1]:1", "HTTP://LOCALHOST"],
    )
    def test_pages_of_this_machine_are_recognised(self, origin):
        assert is_loopback_origin(origin)

    @pytest.mark.parametrize(
        "origin",
        [
            "https://evil.example",
            "http://127.0.0.1.evil.example",
            "http://localhost@evil.example",
            "http://evil.example/http://localhost",
            "http://evil.example#@localhost",
            "http://0.0.0.0:8000",
            "http://",
            "file://",
            "localhost",
            "null",
            "",
            "http://[::1",
            "http://[localhost]",
        ],
    )
    def test_all_others_are_not(self, origin):
        assert not is_loopback_origin(origin)
