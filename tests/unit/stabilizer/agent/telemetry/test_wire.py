"""Addresses, proxies, typed requests, waits."""

import os
import random

import pytest
from pydantic_core import to_json

from stabilizer.agent.telemetry.client import RefusedError, TelemetryClient
from stabilizer.agent.telemetry.failures import Backoff, DeliveryVerdict, judge_failure
from stabilizer.agent.telemetry.http import Endpoint, HttpResponse, HttpTransport, find_proxy
from stabilizer.agent.telemetry.settings import ReporterSettings
from stabilizer.errors import ConfigurationError, TelemetryError


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


class TestEndpoint:
    @pytest.mark.parametrize(
        ("url", "text", "loopback"),
        [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000", True),
            ("http://localhost", "http://localhost:80", True),
            ("http://[::1]:9/", "http://[::1]:9", True),
            ("https://watch.example/stabilizer/", "https://watch.example:443/stabilizer", False),
        ],
    )
    def test_addresses(self, url, text, loopback):
        endpoint = Endpoint.parse(url)
        assert str(endpoint) == text
        assert endpoint.is_loopback is loopback

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "127.0.0.1:8000",
            "ftp://host",
            "http://",
            "http://host:port",
            "http://host:99999",
            "http://me:hunter2@host",
            "http://host?x=1",
            "http://host:8000/api/v1/",
            "http://host/#x",
            "http://host/\r\nX: y",
        ],
    )
    def test_what_is_no_address_is_refused_without_repeating_it(self, url):
        with pytest.raises(ConfigurationError, match="allowed") as caught:
            Endpoint.parse(url)
        assert "hunter2" not in str(caught.value)

    def test_proxy_of_the_environment_is_used(self, monkeypatch):
        monkeypatch.setenv("https_proxy", "http://me:secret%40@proxy.example:3128")
        proxy = find_proxy(Endpoint.parse("https://watch.example"))
        assert (proxy.host, proxy.port) == ("proxy.example", 3128)
        assert proxy.headers["Proxy-Authorization"].startswith("Basic ")
        assert "Basic" not in repr(proxy)

    @pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://localhost", "http://[::1]"])
    def test_loopback_takes_no_proxy(self, monkeypatch, url):
        monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
        assert find_proxy(Endpoint.parse(url)) is None

    def test_no_proxy_is_heard(self, monkeypatch):
        monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
        monkeypatch.setenv("no_proxy", ".example")
        assert find_proxy(Endpoint.parse("http://watch.example")) is None

    def test_proxy_of_another_kind_is_refused(self, monkeypatch):
        monkeypatch.setenv("http_proxy", "socks5://proxy.example:1080")
        with pytest.raises(ConfigurationError, match="proxy for http"):
            find_proxy(Endpoint.parse("http://watch.example"))

    @pytest.mark.parametrize("token", ["", "two words", "line\r\nX: y", "\u00e9\u00e8"])
    def test_token_that_cannot_be_sent_is_refused_without_showing_it(self, token):
        endpoint = Endpoint.parse("http://localhost")
        with pytest.raises(ConfigurationError, match="token is not usable") as caught:
            HttpTransport(endpoint, token, ReporterSettings())
        assert not token or token not in str(caught.value)


class TestClient:
    @pytest.fixture
    def make_client(self, settings):
        def make(response):
            class Fixed:
                def request(self, request):
                    return response

                def close(self):
                    pass

            return TelemetryClient(Fixed(), settings, secret="s3cret")

        return make

    def test_problem_gives_code_and_fields(self, make_client, kit):
        body = (
            b'{"title":"t","status":422,"code":"invalid_input","detail":"no s3cret\\u0007",'
            b'"errors":[{"field":"name","allowed":"a name"}]}'
        )
        with pytest.raises(RefusedError) as caught:
            make_client(HttpResponse(422, body)).register(kit.make_register())
        assert caught.value.code == "invalid_input"
        assert str(caught.value).endswith("no ***  name: allowed: a name")

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"code": 5}', b"\xff\xfe"])
    def test_refusal_without_a_problem_has_its_status(self, make_client, kit, body):
        with pytest.raises(RefusedError) as caught:
            make_client(HttpResponse(502, body)).register(kit.make_register())
        assert caught.value.code == "http_502"

    @pytest.mark.parametrize(
        "body", [b"", b"{}", b"<html>s3cret", b'{"run_id": 1}', b"[" * 100_000, b"null"]
    )
    def test_garbage_is_a_failure_with_a_code(self, make_client, kit, body):
        with pytest.raises(TelemetryError) as caught:
            make_client(HttpResponse(200, body)).register(kit.make_register())
        assert caught.value.code == "garbage_answer"
        assert "s3cret" not in str(caught.value)
        assert caught.value.__cause__ is None

    def test_newer_collector_may_say_more(self, make_client):
        body = b'{"attempt":1,"accepted_sequence":0,"plan":{"every":3,"new":1},"weather":"fine"}'
        answer = make_client(HttpResponse(200, body)).send_frames("r", b"")
        assert answer.plan.every == 3

    def test_a_malformed_command_costs_itself_only(self, make_client, caplog):
        command = {
            "id": "good",
            "run_id": "r",
            "attempt": 1,
            "parameters": {"kind": "pause"},
            "state": "pending",
            "reason": "manual",
            "issued_at": "2026-01-01T00:00:00Z",
            "expires_at": "2026-01-01T00:01:00Z",
        }
        malformed = [
            command | {"expires_at": "2026-01-01T00:01:00"},  # no zone
            command | {"parameters": {"kind": "reduce_lr", "factor": "nan"}},
            command | {"id": "x" * 101},
            command | {"parameters": {"kind": "melt"}},
            "s3cret",
        ]
        commands = [*malformed, command]
        body = to_json({"attempt": 1, "accepted_sequence": 7, "commands": commands})
        client = make_client(HttpResponse(200, body))
        for _ in range(2):
            answer = client.send_frames("r", b"")
            assert answer.accepted_sequence == 7
            assert [command.id for command in answer.commands] == ["good"]
        assert len(caplog.messages) == len(malformed)  # once each
        assert "s3cret" not in caplog.text

    def test_commands_beyond_the_bound_wait(self, make_client):
        command = {
            "run_id": "r",
            "attempt": 1,
            "parameters": {"kind": "pause"},
            "state": "pending",
            "reason": "manual",
            "issued_at": "2026-01-01T00:00:00Z",
            "expires_at": "2026-01-01T00:01:00Z",
        }
        many = [command | {"id": f"c{number}"} for number in range(1000)]
        body = to_json({"attempt": 1, "accepted_sequence": 7, "commands": many})
        answer = make_client(HttpResponse(200, body)).send_frames("r", b"")
        assert [command.id for command in answer.commands] == [f"c{n}" for n in range(100)]

    def test_names_are_quoted_in_paths(self, settings, kit, collector):
        client = TelemetryClient(collector, settings)
        with pytest.raises(RefusedError):
            client.send_result("a/../b?c", kit.make_result("x/y"))
        assert collector.requests[0].path == ("/api/v1/runs/a%2F..%2Fb%3Fc/commands/x%2Fy/result")

    def test_poll_names_what_is_known(self, settings, collector):
        TelemetryClient(collector, settings).poll(
            "run-1", "a" * 32, known=["c1", "c2"], wait_seconds=1.2, is_cancelled=lambda: False
        )
        path = collector.requests[0].path
        assert path.endswith(f"next?attempt_id={'a' * 32}&wait=2&known=c1&known=c2")
        assert collector.requests[0].timeout_seconds == 2 + settings.request_timeout_seconds


@pytest.mark.parametrize(
    ("status", "code", "verdict"),
    [
        (401, "unauthenticated", DeliveryVerdict.REFUSED),
        (403, "forbidden", DeliveryVerdict.REFUSED),
        (426, "protocol_version_unsupported", DeliveryVerdict.REFUSED),
        (404, "unknown_run", DeliveryVerdict.LOST_RUN),
        (404, "unknown_command", DeliveryVerdict.REJECTED),
        (404, "http_404", DeliveryVerdict.RETRY),
        (409, "command_settled", DeliveryVerdict.REJECTED),
        (413, "http_413", DeliveryVerdict.REJECTED),
        (422, "step_out_of_order", DeliveryVerdict.REJECTED),
        (429, "http_429", DeliveryVerdict.RETRY),
        (500, "internal_error", DeliveryVerdict.RETRY),
        (503, "storage_unavailable", DeliveryVerdict.RETRY),
    ],
)
def test_verdicts_on_refusals(status, code, verdict):
    error = RefusedError("no", status=status, code=code, retry_after_seconds=None)
    assert judge_failure(error) is verdict


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("connect_failed", DeliveryVerdict.RETRY),
        ("read_timeout", DeliveryVerdict.RETRY),
        ("garbage_answer", DeliveryVerdict.RETRY),
        ("redirect_refused", DeliveryVerdict.REFUSED),
        ("tls_failed", DeliveryVerdict.REFUSED),
    ],
)
def test_verdicts_on_failures(code, verdict):
    assert judge_failure(TelemetryError("no", code=code)) is verdict


class TestBackoff:
    def test_waits_double_up_to_a_limit_with_jitter(self):
        backoff = Backoff(1.0, 30.0, "seed")
        waits = []
        for _ in range(100):
            backoff.fail(0.0)
            waits.append(backoff.seconds_left(0.0))
        for number, wait in enumerate(waits):
            ceiling = min(30.0, 2.0**number)
            assert ceiling / 2 <= wait <= ceiling
        assert len(set(waits)) == 100

    def test_jobs_differ_and_each_repeats_itself(self):
        def first(seed):
            backoff = Backoff(1.0, 30.0, seed)
            backoff.fail(0.0)
            return backoff.seconds_left(0.0)

        assert first("a") == first("a") != first("b")

    def test_global_random_state_is_untouched(self):
        before = random.getstate()
        Backoff(1.0, 30.0, "seed").fail(0.0)
        assert random.getstate() == before

    def test_success_forgets(self):
        backoff = Backoff(1.0, 30.0, "seed")
        backoff.fail(0.0)
        backoff.succeed()
        assert backoff.seconds_left(0.0) == 0.0


class TestSettings:
    @pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
    def test_waits_must_be_positive_numbers(self, value):
        with pytest.raises(ConfigurationError, match=r"reporter\.linger_seconds is .*allowed"):
            ReporterSettings(linger_seconds=value)

    def test_no_spool_and_no_wait_are_allowed(self):
        settings = ReporterSettings(spool_bytes=0, register_wait_seconds=0.0)
        assert settings.spool_bytes == 0

    def test_place_of_the_spool_comes_from_the_environment(self, monkeypatch, tmp_path):
        monkeypatch.setenv("STABILIZER_SPOOL_DIRECTORY", str(tmp_path))
        assert ReporterSettings().spool_directory == tmp_path
        monkeypatch.setenv("STABILIZER_SPOOL_DIRECTORY", "")
        assert ReporterSettings().spool_directory is None

    @pytest.mark.parametrize(("value", "strict"), [("1", True), ("0", False), ("", False)])
    def test_strictness_comes_from_the_environment(self, monkeypatch, value, strict):
        monkeypatch.setenv("STABILIZER_STRICT", value)
        assert ReporterSettings().strict is strict
